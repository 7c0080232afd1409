"""`bootpig generate` with a BootPIG on the toy base: one process, no server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig.flows.cli.main import main
from bootpig.models.pipelines.references import prepare_picture
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.toy.world import render_reference, render_scene
from bootpig.stages.evaluate.contact_sheet import CELL, GAP, LINE, MARGIN
from tests.models.drawing import memory_for

PROJECT = Path(__file__).parents[3]
TOY = str(PROJECT / "configs" / "toy.yaml")
BASE = PROJECT / "models" / "toy" / "checkpoints" / "stable-diffusion"
PROMPT = "A photo of a mug, on the left on a snowy hill"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model; the content of its pictures does not matter here."""
    folder = tmp_path_factory.mktemp("model")
    pipeline = BootPIGPipeline.from_pretrained(BASE, safety_checker=None, requires_safety_checker=False)
    pipeline.save_bootpig(folder, {"base": str(BASE)}, dtype=torch.float16)
    return folder


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("references")
    for identity in (1, 2):
        render_reference("mug", identity).save(folder / f"{identity}.png")
    return ["--ref", str(folder / "1.png"), "--ref", str(folder / "2.png")]


def generate(model: Path, *arguments: str) -> int:
    return main(["generate", str(model), "--steps", "2", *arguments])


def cell(sheet: np.ndarray, column: int) -> np.ndarray:
    """A picture from the sheet's only row at its original 64 pixels; the sheet enlarges small pictures twofold."""
    top, left = MARGIN + LINE, MARGIN + column * (CELL + GAP)
    return sheet[top : top + CELL : 2, left : left + CELL : 2]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_picture_is_the_same_in_every_batch(model: Path, references: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\nA photo of a mug, in the center on a blue carpet\n")
    many = ["--prompts", str(tmp_path / "prompts.txt"), "--count", "2", *references]
    assert generate(model, *many, "-o", str(tmp_path / "many.png")) == 0
    assert generate(model, *many, "-o", str(tmp_path / "few.png"), "--batch-size", "1") == 0
    files = [tmp_path / f"many-{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        difference = np.abs(pixels(file).astype(int) - pixels(tmp_path / f"few-{number}.png"))
        assert difference.max() <= 1
    assert len({pixels(file).tobytes() for file in files}) == 4
    assert generate(model, "--prompt", PROMPT, *references, "-o", str(tmp_path / "one.png")) == 0
    assert np.abs(pixels(tmp_path / "one.png").astype(int) - pixels(files[0])).max() <= 1
    # the order of references does not matter, their number does
    swapped = [*references[2:], *references[:2]]
    assert generate(model, "--prompt", PROMPT, *swapped, "-o", str(tmp_path / "swapped.png")) == 0
    assert np.abs(pixels(tmp_path / "one.png").astype(int) - pixels(tmp_path / "swapped.png")).max() <= 1


def test_out_of_memory_ends_with_all_pictures(
    model: Path,
    references: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = ["--prompt", PROMPT, "--count", "6", *references]
    assert generate(model, *many, "-o", str(tmp_path / "small.png"), "--batch-size", "2") == 0
    memory_for(2, monkeypatch)
    assert generate(model, *many, "-o", str(tmp_path / "halved.png"), "--batch-size", "4") == 0
    assert caplog.text.count("out of memory; continuing with batches of 2 (--batch-size)") == 1
    for number in range(6):
        assert np.array_equal(pixels(tmp_path / f"halved-{number}.png"), pixels(tmp_path / f"small-{number}.png"))
    capsys.readouterr()
    memory_for(0, monkeypatch)
    assert generate(model, *many, "-o", str(tmp_path / "none.png")) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("generate: out of memory with a single sample; ")
    assert "Traceback" not in said


@pytest.mark.parametrize("crop", [[], ["--padding-mask-crop", "6"]], ids=["whole", "crop"])
def test_inpainting_a_toy_scene(
    model: Path, references: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], crop: list[str]
) -> None:
    scene = render_scene(7)
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    Image.fromarray(scene.mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    painting = ["--image", str(tmp_path / "scene.png"), "--mask", str(tmp_path / "mask.png"), *crop]
    out, sheet = tmp_path / "out.png", tmp_path / "sheet.png"
    assert generate(model, "--prompt", PROMPT, *references, *painting, "-o", str(out), "--sheet", str(sheet)) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    psnr = re.search(r"known region (\d+\.\d) dB before pasting", said.err)
    assert psnr is not None
    assert 10 < float(psnr[1]) < 60
    white = scene.mask.astype(bool)
    assert np.array_equal(pixels(out)[~white], scene.image[~white])
    assert not np.array_equal(pixels(out)[white], scene.image[white])
    columns = [cell(pixels(sheet), column) for column in range(4)]
    after, mask = pixels(out), np.repeat(scene.mask[..., None] * 255, 3, axis=2)
    reference = np.asarray(prepare_picture(Image.open(references[1]), 64))
    for shown, picture in zip(columns, (scene.image, mask, reference, after), strict=True):
        assert np.array_equal(shown, picture)


def test_a_plain_photo_is_cut_out(model: Path, tmp_path: Path) -> None:
    scene = render_scene(11, kind="teapot")
    Image.fromarray(scene.image).save(tmp_path / "photo.png")
    arguments = ["--prompt", "A photo of a teapot, on the left on a snowy hill", "--ref", str(tmp_path / "photo.png")]
    sheet = tmp_path / "sheet.png"
    cutting = ["--cut-out", "--config", TOY, "--steps", "1", "--sheet", str(sheet), "-o", str(tmp_path / "out.png")]
    assert generate(model, *arguments, *cutting) == 0
    reference = pixels(sheet)[40:160, 20:148]
    assert (reference[:8] == 255).all(), "the subject stands on white"
    assert (reference != 255).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt: missing → say what to draw"),
        (["--prompts", "nope.txt"], "--prompts: 'nope.txt' → cannot be read"),
        (["--prompt", "x", "--image", "a.png"], "--image and --mask: → inpainting needs both"),
        (
            ["--prompt", "x", "--strength", "0.5"],
            "--strength and --padding-mask-crop: → have no effect without --image",
        ),
        (
            ["--prompt", "x", "--image", "a.png", "--mask", "a.png", "--strength", "1.5"],
            "--strength: 1.5 → must be above 0 and at most 1",
        ),
        (
            ["--prompt", "x", "--image", "a.png", "--mask", "a.png", "--padding-mask-crop", "-1"],
            "--padding-mask-crop: -1 → must be 0 pixels or more",
        ),
        (["--prompt", "x", "--batch-size", "0"], "--batch-size: 0 → must be from 1"),
        (["--prompt", "x", "--cut-out"], "--cut-out: → needs the segment stage's models"),
        (["--prompt", "x", "--cut-out", "--config", TOY], "--object: missing → name the subject"),
        (["--prompt", "x", "--out", "a.jpg"], "--out: 'a.jpg' → give a name that ends in .png"),
        (["--prompt", "x", "--ref", "nope.png"], "--ref: 'nope.png' → there is no such file"),
        (["--prompt", "x", "--image", "{a}", "--mask", "{b}"], "--mask: '{b}' → 8x8 pixels for an image of 64x64"),
    ],
)
def test_bad_input_is_one_line(
    model: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    Image.new("L", (8, 8), 255).save("b.png")
    filled = [argument.format(a="a.png", b="b.png") for argument in arguments]
    assert generate(model, *filled) == 2
    said = capsys.readouterr().err
    assert said.startswith(message.format(b="b.png"))
    assert said.count("\n") == 1


def test_the_card_goes_with_the_model(model: Path) -> None:
    info = json.loads((model / "bootpig.json").read_text())
    assert info["base_license"] == "apache-2.0"
    assert "license: apache-2.0" in (model / "README.md").read_text()


def overflowing(folder: Path, weight: float) -> Path:
    """A trained model on a base whose weights are finite, but whose pictures are not."""
    pipeline = BootPIGPipeline.from_pretrained(BASE, safety_checker=None, requires_safety_checker=False)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.fill_(weight)
    pipeline.save_pretrained(folder / "base")
    pipeline.save_bootpig(folder / "model", {"base": str(folder / "base")})
    return folder / "model"


@pytest.mark.parametrize(
    ("weight", "dtype", "fix"),
    [
        (3e38, "float32", "the networks diverge even in float32; lower the guidance scales, or use another"),
        (6e4, "float16", "float16 overflows; set --dtype to bfloat16 or float32"),
    ],
)
@pytest.mark.parametrize("paint", [False, True], ids=["whole", "inpainting"])
def test_a_picture_that_is_not_finite_is_not_written(
    weight: float, dtype: str, fix: str, paint: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = overflowing(tmp_path, weight)
    out, sheet = tmp_path / "out.png", tmp_path / "sheet.png"
    options = ["--prompt", PROMPT, "--count", "2", "--dtype", dtype, "-o", str(out), "--sheet", str(sheet)]
    if paint:
        Image.fromarray(render_scene(7).image).save(tmp_path / "scene.png")
        Image.fromarray(render_scene(7).mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
        options += ["--image", str(tmp_path / "scene.png"), "--mask", str(tmp_path / "mask.png")]
    assert generate(model, *options) == 1
    said = capsys.readouterr()
    assert said.out == ""
    line = "generate: 2 of 2 pictures hold NaN or infinity and were not written (out-0.png, out-1.png); " + fix
    assert said.err.splitlines()[-1].startswith(line)
    assert sorted(path.name for path in tmp_path.glob("*.png") if path.stem not in ("scene", "mask")) == []
    if dtype == "float16":
        assert generate(model, "--prompt", PROMPT, "--dtype", "bfloat16", "-o", str(out)) == 0
        assert out.exists()


def test_a_phrase_with_dots_is_cut_out_or_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.models.detectors import save_grounding_dino

    detector = save_grounding_dino(tmp_path / "detector")
    config = tmp_path / "dino.yaml"
    text = Path(TOY).read_text().replace("detector: models/toy/checkpoints/owlvit", f"detector: {detector}")
    config.write_text(text)
    Image.fromarray(render_scene(7).image).save(tmp_path / "photo.png")
    options = ["--prompt", PROMPT, "--cut-out", "--config", str(config), "--ref", str(tmp_path / "photo.png")]
    for phrase in ("a St. Bernard", "...", "No. 5 perfume bottle"):
        code = generate(model, *options, "--object", phrase, "-o", str(tmp_path / "out.png"))
        said = capsys.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in said
        if phrase == "...":
            assert code == 2
            assert "the detector found nothing for the object phrase" in said
