"""`bootpig generate` on the toy base, with scenes, masks and references as users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from bootpig.flows.cli.main import main
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.toy.world import render_reference, render_scene

BASE = Path(__file__).parents[2] / "models" / "toy" / "checkpoints" / "stable-diffusion"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline = BootPIGPipeline.from_pretrained(BASE, safety_checker=None, requires_safety_checker=False)
    pipeline.save_bootpig(folder, {"base": str(BASE)}, dtype=torch.float16)
    return folder


def draw(model: Path, folder: Path, *arguments: str) -> Image.Image:
    out = folder / "out.png"
    assert (
        main(["generate", str(model), "--prompt", "A photo of a mug", "--steps", "2", *arguments, "-o", str(out)]) == 0
    )
    with Image.open(out) as image:
        assert image.info == {} and len(image.getexif()) == 0
        return image.copy()


def scene(width: int, height: int) -> Image.Image:
    return Image.fromarray(render_scene(7).image).resize((width, height))


def masked(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", image.size)
    mask.paste(255, box)
    return mask


def paint(model: Path, folder: Path, image: Image.Image, mask: Image.Image, *arguments: str) -> np.ndarray:
    """What is drawn; outside the mask it is checked to be the scene."""
    image.save(folder / "scene.png")
    mask.save(folder / "mask.png")
    files = ["--image", str(folder / "scene.png"), "--mask", str(folder / "mask.png")]
    drawn = np.asarray(draw(model, folder, *files, *arguments))
    kept = np.asarray(mask) == 0
    assert np.array_equal(drawn[kept], np.asarray(image.convert("RGB"))[kept])
    return drawn[~kept].astype(int)


@pytest.mark.parametrize(
    ("size", "box", "crop"),
    [
        ((192, 64), (3, 3, 8, 8), []),
        ((64, 192), (20, 1, 21, 180), []),
        ((97, 61), (2, 2, 90, 59), []),
        ((192, 64), (2, 2, 180, 59), ["--padding-mask-crop", "4"]),
        ((97, 61), (20, 20, 22, 22), ["--padding-mask-crop", "4"]),
    ],
)
def test_a_scene_of_any_shape(
    model: Path, tmp_path: Path, size: tuple[int, int], box: tuple[int, int, int, int], crop: list[str]
) -> None:
    image = scene(*size)
    mask = masked(image, box)
    drawn = paint(model, tmp_path, image, mask, *crop)
    assert not np.array_equal(drawn, np.asarray(image, int)[np.asarray(mask) > 0]), "something is drawn"


def test_a_scene_of_16_bits_with_a_drawn_mask(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.asarray(scene(64, 64).convert("L"))
    Image.fromarray(grey * np.uint16(257)).save(tmp_path / "scene.tiff")
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (10, 10, 30, 30))
    mask.save(tmp_path / "mask.png")
    drawn = draw(model, tmp_path, "--image", str(tmp_path / "scene.tiff"), "--mask", str(tmp_path / "mask.png"))
    kept = np.asarray(mask)[..., 3] == 0
    assert np.array_equal(np.asarray(drawn)[kept], np.repeat(grey[kept][:, None], 3, axis=1))
    assert (
        "--mask: read from its transparency: what is drawn is repainted; 9.8% is repainted" in capsys.readouterr().err
    )


def test_references_that_say_the_same_draw_the_same(model: Path, tmp_path: Path) -> None:
    """A screenshot with an alpha, a 16-bit copy, another profile's name and a bitmap are the photo itself."""
    photo = render_reference("mug", 1).convert("RGB")
    grey = photo.convert("L")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(tmp_path / "photo.png")
    photo.convert("RGBA").save(tmp_path / "screenshot.png")
    photo.save(tmp_path / "profile.png", icc_profile=profile)
    photo.save(tmp_path / "photo.bmp")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey) * np.uint16(257)).save(tmp_path / "deep.png")

    def drawn(name: str) -> bytes:
        return draw(model, tmp_path, "--ref", str(tmp_path / name)).tobytes()

    assert drawn("photo.png") == drawn("screenshot.png") == drawn("profile.png") == drawn("photo.bmp")
    assert drawn("grey.png") == drawn("deep.png") != drawn("photo.png")
