"""The whole stage on tiny random models of the real classes, and the folder of subjects that it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from bootpig.models.pretrained.embedders import DinoEmbedder
from bootpig.models.pretrained.source import ModelError
from bootpig.models.toy.subject_folder import FOLDER, VALIDATION, VALIDATION_SEED, VALIDATION_SUBJECTS, write_folder
from bootpig.models.toy.subject_folder import SUBJECTS as SHIPPED
from bootpig.models.toy.world import KINDS
from bootpig.stages.engine.contract import FatalError, InputError, ReduceInput
from bootpig.stages.evaluate.all_drawings import Evaluation
from bootpig.stages.evaluate.drawing import METHODS, drawings, prepared_references
from bootpig.stages.evaluate.metrics import mean_cosine
from bootpig.stages.evaluate.prompts import fill
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.evaluate.subjects import read_subjects
from tests.models.drawing import memory_for
from tests.stages.evaluate.world import evaluate_config, make_world

SUBJECTS = 3
PROMPTS = ("a {object} on the table",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), SUBJECTS)


def run(world: Path, workdir: Path, **changes) -> dict:
    """Run the stage as the engine does; returns metrics.json."""
    workdir.mkdir(parents=True)
    calls = []
    data = ReduceInput((), lambda unit: world, world / "result")
    stage = Evaluate(evaluate_config(world, **changes), seed=0)
    stage.run(data, workdir, None, lambda done, total, text: calls.append((done, total)))
    assert calls[-1] == (calls[-1][1], calls[-1][1])
    assert calls == sorted(calls)
    return json.loads((workdir / "metrics.json").read_text())


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("result") / "evaluate"
    return run(world, workdir), workdir


def test_metrics_have_the_promised_layout(result):
    metrics, _ = result
    assert set(metrics) == {"subjects", "images", "methods", "gap_closed_dino"}
    assert (metrics["subjects"], metrics["images"]) == (SUBJECTS, SUBJECTS * 2)
    assert list(metrics["methods"]) == [*METHODS, "real"]
    for values in metrics["methods"].values():
        assert set(values) == {"clip_t", "clip_i", "dino"}
        for value in values.values():
            low, high = value["ci95"]
            assert -1 <= low <= value["mean"] <= high <= 1
    dino = {method: values["dino"]["mean"] for method, values in metrics["methods"].items()}
    gap = dino["real"] - dino["text_only"]
    expected = (dino["bootpig"] - dino["text_only"]) / gap if gap > 0 else None
    assert metrics["gap_closed_dino"] == pytest.approx(expected, abs=1e-4)


def test_every_picture_and_score_is_kept(result):
    metrics, workdir = result
    table = pq.read_table(workdir / "scores.parquet").to_pylist()
    assert len(table) == len(METHODS) * metrics["images"]
    assert all((workdir / row["file"]).is_file() for row in table)
    assert len(list((workdir / "images" / "reference").iterdir())) == SUBJECTS
    assert {row["seed"] for row in table if row["method"] == "bootpig"} == {
        row["seed"] for row in table if row["method"] == "text_only"
    }
    for method in METHODS:
        rows = [row for row in table if row["method"] == method]
        by_subject = [np.mean([r["clip_t"] for r in rows if r["subject"] == s]) for s in {r["subject"] for r in rows}]
        assert metrics["methods"][method]["clip_t"]["mean"] == pytest.approx(np.mean(by_subject), abs=1e-6)
    with Image.open(workdir / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 4 * 128


def test_dino_is_recomputed_from_the_files(result, world):
    _, workdir = result
    dino = DinoEmbedder(str(world / "dino"))
    row = [r for r in pq.read_table(workdir / "scores.parquet").to_pylist() if r["method"] == "bootpig"][-1]
    photos = [Image.open(world / "subjects" / row["subject"] / f"{n:02d}.png") for n in range(1, 6)]
    expected = mean_cosine(dino.images([Image.open(workdir / row["file"])]), dino.images(photos))[0]
    assert row["dino"] == pytest.approx(expected, abs=1e-5)


def test_text_only_is_plain_diffusers_from_the_same_noise(result, world):
    _, workdir = result
    subject = read_subjects(world / "subjects", (), 1)[0]
    row = drawings([subject], 1, seed=0)[0]
    plain = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(row.seed))
    expected = plain(row.prompt, num_inference_steps=2, guidance_scale=7.5, latents=noise).images[0]
    drawn = Image.open(workdir / "images" / "text_only" / row.file)
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1
    trained = Image.open(workdir / "images" / "bootpig_no_reference" / row.file)
    assert np.abs(np.asarray(trained, int) - np.asarray(expected, int)).max() > 1


def test_equal_runs_are_equal_and_the_batch_size_is_speed(result, world, tmp_path):
    metrics, workdir = result
    again = run(world, tmp_path / "again")
    assert again == metrics
    for name in ("scores.parquet", "contact_sheet.png"):
        assert (tmp_path / "again" / name).read_bytes() == (workdir / name).read_bytes()
    other = run(world, tmp_path / "other", batch_size=5)
    for method, values in metrics["methods"].items():
        for metric, value in values.items():
            assert other["methods"][method][metric]["mean"] == pytest.approx(value["mean"], abs=2e-3)


def test_out_of_memory_ends_with_all_pictures(world, tmp_path, monkeypatch, caplog):
    expected = run(world, tmp_path / "small", batch_size=2)
    memory_for(2, monkeypatch)
    assert run(world, tmp_path / "halved", batch_size=4) == expected
    assert caplog.text.count("out of memory; continuing with batches of 2 (evaluate.batch_size)") == len(METHODS)
    files = sorted(path.relative_to(tmp_path / "small") for path in (tmp_path / "small").rglob("*.png"))
    assert len([file for file in files if file.parts[1:2] == ("bootpig",)]) == expected["images"]
    assert all((tmp_path / "halved" / file).read_bytes() == (tmp_path / "small" / file).read_bytes() for file in files)


def test_the_reference_is_seen_but_never_scored_against(result, world, tmp_path):
    metrics, _ = result
    changed = tmp_path / "subjects"
    write_folder(changed, SUBJECTS)
    for path in changed.glob("*/00.png"):
        Image.new("RGB", (64, 64), (255, 0, 0)).save(path)
    other = run(world, tmp_path / "other", subjects=str(changed))
    for method in ("text_only", "bootpig_no_reference", "real"):
        assert other["methods"][method] == metrics["methods"][method]
    for method in ("untrained", "bootpig"):
        assert other["methods"][method]["dino"] != metrics["methods"][method]["dino"]


def test_the_untrained_model_reads_references_as_the_trained_one_does(result, world, tmp_path):
    copy = shutil.copytree(world, tmp_path / "world")
    file = copy / "result" / "model" / "bootpig.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "reference_timestep": "zero"}))
    metrics = run(copy, tmp_path / "clean")["methods"]
    for method in ("untrained", "bootpig"):
        assert metrics[method]["dino"] != result[0]["methods"][method]["dino"]
    for method in ("text_only", "bootpig_no_reference"):
        assert metrics[method]["dino"] == result[0]["methods"][method]["dino"]


def test_a_changed_picture_changes_the_identity(world, tmp_path):
    changed = tmp_path / "subjects"
    write_folder(changed, SUBJECTS)
    stage = Evaluate(evaluate_config(world, subjects=str(changed)), seed=0)
    before = stage.models()["subjects"].as_json()
    assert before == Evaluate(evaluate_config(world), seed=0).models()["subjects"].as_json()
    Image.new("RGB", (64, 64)).save(next(changed.glob("*/03.png")))
    assert stage.models()["subjects"].as_json() != before


def test_speed_is_not_hashed_and_models_are_by_identity(world):
    hashed = evaluate_config(world).hashed()
    assert {"batch_size", "device", "model", "clip", "dino", "subjects"}.isdisjoint(hashed)
    assert {"seed", "steps", "guidance_scale", "reference_guidance_scale", "references", "prompts"} <= set(hashed)


def test_a_folder_without_a_trained_model_is_one_line(world, tmp_path):
    with pytest.raises(InputError, match=r"bootpig\.json") as caught:
        Evaluate(evaluate_config(world), seed=0).measure(tmp_path, tmp_path / "out", lambda *_: None)
    assert "\n" not in str(caught.value)


def test_a_damaged_trained_model_is_one_line(world, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for path in sorted((world / "result" / "model").rglob("*")):
        target = model / path.relative_to(world / "result" / "model")
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    (model / "rsa.safetensors").write_bytes((model / "rsa.safetensors").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"rsa\.safetensors") as caught:
        Evaluate(evaluate_config(world), seed=0).measure(model, tmp_path / "out", lambda *_: None)
    assert "\n" not in str(caught.value)


def test_a_prompt_without_object_is_a_config_error(world):
    with pytest.raises(ValidationError, match="object"):
        evaluate_config(world, prompts=("a mug on a table",))
    with pytest.raises(ValidationError):
        evaluate_config(world, references=0)
    assert evaluate_config(world, references="all").references == "all"


# The folder of subjects


def photos(folder: Path, names: list[str], size: int = 32) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (size, size), (40 * index, 90, 90)).save(folder / name)


def test_a_plain_dreambooth_folder(tmp_path):
    for name in ("backpack_dog", "cat2", "berry_bowl"):
        photos(tmp_path / name, ["00.jpg", "01.jpg", "02.jpg", "03.jpg"])
    text = "Classes\n\nsubject_name,class\nbackpack_dog,backpack\ncat2,cat\n\nPrompts\n'a {0} {1} in the jungle',\n"
    (tmp_path / "prompts_and_classes.txt").write_text(text)
    subjects = read_subjects(tmp_path, PROMPTS, 1)
    assert [(s.name, s.object) for s in subjects] == [
        ("backpack_dog", "backpack"),
        ("berry_bowl", "berry bowl"),
        ("cat2", "cat"),
    ]
    assert subjects[2].prompts == ("a cat on the table",)
    assert [path.name for path in subjects[2].references] == ["00.jpg"]
    assert [path.name for path in subjects[2].real] == ["01.jpg", "02.jpg", "03.jpg"]


def test_all_pictures_as_references_as_in_the_paper(tmp_path):
    photos(tmp_path / "cat", ["00.png", "01.png"])
    subject = read_subjects(tmp_path, PROMPTS, "all")[0]
    assert subject.references == subject.real == (tmp_path / "cat" / "00.png", tmp_path / "cat" / "01.png")


@pytest.mark.parametrize("references", [1, 2, 3, "all"])
def test_any_number_of_references_can_be_compared_with_the_same_pictures(tmp_path, references):
    photos(tmp_path / "cat", [f"{n:02d}.png" for n in range(5)])
    (subject,) = read_subjects(tmp_path, PROMPTS, references, compared=2)
    assert [path.name for path in subject.real] == ["03.png", "04.png"]
    assert len(subject.references) == (5 if references == "all" else references)


@pytest.mark.parametrize(
    ("references", "compared", "says"),
    [
        (3, 3, r"5 pictures; 3 as reference and 3 .* or lower evaluate.references or evaluate.compared"),
        (1, 5, r"1 as reference and 5 .* or lower evaluate.compared"),
        ("all", 6, r"at least 6 .* or lower evaluate.compared"),
    ],
)
def test_references_are_not_compared_with(tmp_path, references, compared, says):
    photos(tmp_path / "cat", [f"{n:02d}.png" for n in range(5)])
    with pytest.raises(InputError, match=says):
        read_subjects(tmp_path, PROMPTS, references, compared=compared)


def test_pooling_of_one_reference_is_refused(world):
    with pytest.raises(ValidationError, match="pooling: no effect on one reference"):
        evaluate_config(world, pooling="argmax")


def test_references_are_pooled_as_the_setting_says(world, tmp_path):
    one, other = (run(world, tmp_path / name, references=2, pooling=name) for name in ("average", "concat"))
    assert one["methods"]["text_only"] == other["methods"]["text_only"]
    assert one["methods"]["bootpig_no_reference"] == other["methods"]["bootpig_no_reference"]
    for method in ("untrained", "bootpig"):
        assert one["methods"][method] != other["methods"][method]


def test_the_article_follows_the_class():
    assert fill("A {object} and a {object}", "umbrella") == "An umbrella and an umbrella"
    assert fill("a {object} on a table", "mug") == "a mug on a table"
    assert fill("the {object}", "umbrella") == "the umbrella"
    assert fill("{braces} of {0}: {object}", "mug") == "{braces} of {0}: mug"


def test_transparent_references_are_cut_out_and_photos_are_said(tmp_path, caplog):
    photos(tmp_path / "mug", ["00.png", "01.png", "02.png"], size=64)
    cut = np.zeros((64, 64, 4), np.uint8)
    cut[4:12, 4:12] = (200, 0, 0, 255)
    Image.fromarray(cut).save(tmp_path / "mug" / "00.png")
    prepared = dict(prepared_references(read_subjects(tmp_path, PROMPTS, 1), 64))["mug"][0]
    pixels = np.asarray(prepared)
    assert (pixels[0] == 255).all()
    assert (pixels[32, 32] == (200, 0, 0)).all()
    assert (pixels[..., 1] < 128).any(axis=0).sum() == 48
    assert not caplog.records
    Image.new("RGB", (64, 64), (10, 200, 10)).save(tmp_path / "mug" / "00.png")
    dict(prepared_references(read_subjects(tmp_path, PROMPTS, 1), 64))
    assert "mug/00.png" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "mug" / "02.png").unlink(), r"'mug' has 2 pictures; 1 as reference and 2 or more"),
        (lambda f: [p.unlink() for p in (f / "mug").iterdir()], "'mug' has 0 pictures"),
        (lambda f: (f / "subjects.yaml").write_text("mug: ["), "not readable YAML"),
        (lambda f: (f / "subjects.yaml").write_text("mug: {klass: cup, prompts: 3}"), r"prompts.*klass"),
        (lambda f: (f / "subjects.yaml").write_text("cup: {class: cup}"), "names cup"),
    ],
)
def test_bad_folders_get_one_line(tmp_path, spoil, says):
    photos(tmp_path / "mug", ["00.png", "01.png", "02.png"])
    read_subjects(tmp_path, PROMPTS, 1)
    spoil(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        read_subjects(tmp_path, PROMPTS, 1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("evaluate.")


def test_no_prompt_and_no_subject_get_one_line(tmp_path, world):
    with pytest.raises(InputError, match="holds no folder"):
        read_subjects(tmp_path, PROMPTS, 1)
    photos(tmp_path / "mug", ["00.png", "01.png", "02.png"])
    with pytest.raises(InputError, match=r"evaluate\.prompts.*'mug'"):
        read_subjects(tmp_path, (), 1)
    with pytest.raises(ModelError, match="there is no folder 'some/where'"):
        Evaluate(evaluate_config(world, subjects="some/where"), seed=0).models()


@pytest.mark.parametrize(
    ("folder", "subjects", "seed"), [(FOLDER, SHIPPED, 0), (VALIDATION, VALIDATION_SUBJECTS, VALIDATION_SEED)]
)
def test_the_committed_folder_is_what_its_maker_makes(folder, subjects, seed, tmp_path):
    write_folder(tmp_path / "subjects", subjects, seed)
    made = {p.relative_to(tmp_path / "subjects"): p for p in (tmp_path / "subjects").rglob("*.*")}
    assert set(made) == {p.relative_to(folder) for p in folder.rglob("*.*")}
    assert (tmp_path / "subjects" / "subjects.yaml").read_text() == (folder / "subjects.yaml").read_text()
    for name, path in made.items():
        if path.suffix == ".png":
            assert (np.asarray(Image.open(path)) == np.asarray(Image.open(folder / name))).all(), name


def test_validation_has_other_identities():
    references = [{path.read_bytes() for path in folder.glob("*/00.png")} for folder in (FOLDER, VALIDATION)]
    assert [len(pictures) for pictures in references] == [SHIPPED, VALIDATION_SUBJECTS]
    assert not references[0] & references[1]


def test_the_committed_folder_holds_enough(tmp_path):
    subjects = read_subjects(FOLDER, (), 1)
    assert len(subjects) >= 32
    assert {subject.object for subject in subjects} == set(KINDS)
    for subject in subjects:
        assert len(subject.prompts) >= 2
        assert len(subject.real) >= 5
        assert set(subject.captions) == {path.name for path in subject.real}
        # A caption to draw never shows a scene of the subject's real pictures.
        scenes = [text.split(" ", 8)[-1] for text in subject.captions.values()]
        assert not any(prompt.endswith(scene) for prompt in subject.prompts for scene in scenes)
    assert len(list(prepared_references(subjects, 64))) == len(subjects)


def spoil_pictures(monkeypatch: pytest.MonkeyPatch, spoiled) -> None:
    """Make the VAE's pixels NaN for the pictures whose number, over all methods, is in `spoiled`."""
    from diffusers import AutoencoderKL

    real, count = AutoencoderKL.decode, [0]

    def decode(self, *args, **options):
        (pixels,) = real(self, *args, **options)
        for row in range(len(pixels)):
            if count[0] in spoiled:
                pixels[row, 0, 3, 3] = float("inf") if count[0] % 2 else float("nan")
            count[0] += 1
        return (pixels,)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)


def test_pictures_that_are_not_finite_are_rows_with_a_reason(result, world, tmp_path, monkeypatch, caplog):
    healthy, _ = result
    spoil_pictures(monkeypatch, {1, 2})
    metrics = run(world, tmp_path / "out")
    assert metrics["not_finite"] == {"text_only": 2}
    assert caplog.text.count("evaluate: 2 of 6 pictures of text_only hold NaN or infinity") == 1
    assert metrics["methods"]["bootpig"] == healthy["methods"]["bootpig"]
    table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    bad = [row for row in table if row["status"] != "ok"]
    assert [(row["method"], row["status"], row["reason"]) for row in bad] == [("text_only", "failed", "not_finite")] * 2
    assert all(row[metric] is None for row in bad for metric in ("clip_t", "clip_i", "dino"))
    assert all(row["dino"] is not None for row in table if row not in bad)
    assert not any((tmp_path / "out" / row["file"]).exists() for row in bad)
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_a_subject_without_a_picture_ends_the_evaluation(world, tmp_path, monkeypatch):
    spoil_pictures(monkeypatch, {0, 1})
    line = r"2 of 6 pictures of text_only hold NaN or infinity, among them all of .*; the networks"
    with pytest.raises(FatalError, match=line):
        run(world, tmp_path / "out")


@pytest.mark.parametrize("judge", ["clip", "dino"])
def test_a_judge_with_nan_is_named_before_anything_is_drawn(judge, world, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    spoiled = Path(shutil.copytree(world / judge, tmp_path / judge))
    state = load_file(spoiled / "model.safetensors")
    name = max(state, key=lambda name: state[name].numel())
    state[name].view(-1)[0] = float("nan")
    save_file(state, spoiled / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(Evaluation, "draw", lambda *_: pytest.fail("it drew"))
    with pytest.raises(ModelError, match=rf"^evaluate\.{judge}: '.*': the weights '.*' hold NaN or infinity; download"):
        run(world, tmp_path / "out", **{judge: str(spoiled)})
