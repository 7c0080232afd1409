"""Every kind of picture at every place that takes one: read right, or refused in one line."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.subjects import read_subjects, unusable_pictures
from bootpig.stages.picture_files import reader
from bootpig.stages.picture_files.folders import picture_paths
from bootpig.stages.picture_files.masks import read_mask
from bootpig.stages.picture_files.reader import on_white, read_picture

SIZE = (16, 12)


def ramp() -> np.ndarray:
    """HWC uint8: a grey ramp from black to white."""
    row = np.linspace(0, 255, SIZE[0]).astype(np.uint8)
    return np.repeat(np.tile(row, (SIZE[1], 1))[..., None], 3, axis=2)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def sixteen(path: Path) -> Path:
    return save(path, Image.fromarray(ramp()[..., 0].astype(np.uint16) * 257))


def floats(path: Path) -> Path:
    return save(path, Image.fromarray(ramp()[..., 0].astype(np.float32) / 255))


GREY = {
    "L.png": lambda p: save(p, Image.fromarray(ramp()[..., 0])),
    "RGB.png": lambda p: save(p, Image.fromarray(ramp())),
    "P.png": lambda p: save(p, Image.fromarray(ramp()[..., 0]).convert("P")),
    "LA.png": lambda p: save(p, Image.fromarray(ramp()[..., 0]).convert("LA")),
    "opaque RGBA.png": lambda p: save(p, Image.fromarray(ramp()).convert("RGBA")),
    "16 bit.png": sixteen,
    "16 bit.tiff": sixteen,
    "float.tiff": floats,
    "bmp.bmp": lambda p: save(p, Image.fromarray(ramp())),
    "tiff.tiff": lambda p: save(p, Image.fromarray(ramp())),
    "ppm.ppm": lambda p: save(p, Image.fromarray(ramp())),
    "webp.webp": lambda p: save(p, Image.fromarray(ramp()), lossless=True),
    "jpeg.jpg": lambda p: save(p, Image.fromarray(ramp()), quality=100),
    "jpeg of greys.jpeg": lambda p: save(p, Image.fromarray(ramp()[..., 0]), quality=100),
    "cmyk.jpg": lambda p: save(p, Image.fromarray(ramp()).convert("CMYK"), quality=100),
    "cmyk.tiff": lambda p: save(p, Image.fromarray(ramp()).convert("CMYK")),
    "lab.tiff": lambda p: save(p, lab(Image.fromarray(ramp()))),
    "animated.gif": lambda p: save(
        p, Image.fromarray(ramp()[..., 0]), save_all=True, append_images=[Image.new("L", SIZE)]
    ),
}
"""Files that hold the grey ramp."""


def lab(image: Image.Image) -> Image.Image:
    made = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert made is not None
    return made


def as_picture(path: Path) -> np.ndarray:
    image = read_picture(path, "--ref")
    assert image.mode == "RGB" and image.info == {}
    return np.asarray(image)[..., 0]


def as_scene(path: Path) -> np.ndarray:
    return np.asarray(on_white(read_picture(path, "--image")))[..., 0]


@pytest.mark.parametrize("read", [as_picture, as_scene])
@pytest.mark.parametrize("name", list(GREY))
def test_every_kind_shows_its_own_greys(name: str, read: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    greys = read(GREY[name](tmp_path / name))
    assert np.abs(greys.astype(int) - ramp()[..., 0]).max() <= 3, greys[0]


@pytest.mark.parametrize("name", list(GREY))
def test_every_kind_is_a_mask(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    mask = np.asarray(read_mask(GREY[name](tmp_path / name), "--mask", said.append))
    assert set(np.unique(mask)) == {0, 255} and abs(mask.mean() / 255 - 0.5) < 0.07
    assert len(said) == 1 and "brightness" in said[0]


@pytest.mark.parametrize("name", [name for name in GREY if not name.startswith("animated")])
def test_every_kind_is_a_subject(name: str, tmp_path: Path) -> None:
    (tmp_path / "mug").mkdir()
    for number in range(3):
        GREY[name](tmp_path / "mug" / f"{number} {name}")
    (subject,) = read_subjects(tmp_path, ["a {object}"], 1)
    assert len(subject.references) == 1 and len(subject.real) == 2


def test_heic_and_avif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(ramp())).save(tmp_path / "a.heic", quality=100)
    assert np.abs(as_picture(tmp_path / "a.heic").astype(int) - ramp()[..., 0]).max() <= 12
    save(tmp_path / "a.avif", Image.fromarray(ramp()), quality=100)
    assert np.abs(as_picture(tmp_path / "a.avif").astype(int) - ramp()[..., 0]).max() <= 12


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


def test_avif_under_a_general_brand_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    Image.fromarray(ramp()).save(data, "AVIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(reader, "_formats", lambda: ("AVIF",))
    assert read_picture(data.getvalue().replace(b"ftypavif", b"ftypmif1", 1), "--ref").size == SIZE


def test_heic_without_its_package_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(reader, "_formats", lambda: ("AVIF", "JPEG", "PNG"))
    (tmp_path / "named as sent.jpg").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"^--ref: .* → is HEIC.*; pip install 'bootpig\[heif\]'$"):
        read_picture(tmp_path / "named as sent.jpg", "--ref")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_only_real_transparency_is_a_cut_out(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(ramp()).convert("RGBA")
    opaque = save(tmp_path / "opaque.png", picture.convert(mode))
    assert read_picture(opaque, "--ref").mode == "RGB", "a screenshot is a photo"
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(0, (0, 0, 4, 12))
    picture.putalpha(alpha)
    cut = read_picture(save(tmp_path / "cut.png", picture.convert("RGBA" if mode == "P" else mode)), "--ref")
    assert cut.mode == "RGBA" and cut.getchannel("A").getextrema() == (0, 255)


def test_transparency_by_a_colour(tmp_path: Path) -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (4, 4, 8, 8))
    cut = read_picture(save(tmp_path / "a.png", image, transparency=0), "--ref")
    assert cut.mode == "RGBA" and np.asarray(cut.getchannel("A")).sum() == 255 * 16


STROKES = (2, 2, 9, 9)


def drawn(paper: tuple[int, int, int, int], ink: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", SIZE, paper)
    image.paste(ink, STROKES)
    return image


@pytest.mark.parametrize(
    ("image", "source"),
    [
        (drawn((255, 255, 255, 0), (255, 255, 255, 255)), "transparency"),
        (drawn((0, 0, 0, 0), (0, 0, 0, 255)), "transparency"),
        (drawn((0, 0, 0, 0), (255, 255, 255, 255)), "transparency"),
        (drawn((255, 255, 255, 0), (0, 0, 0, 200)), "transparency"),
        (drawn((0, 0, 0, 255), (255, 255, 255, 255)), "brightness"),
        (drawn((10, 10, 10, 128), (255, 255, 255, 255)), "brightness, black"),
    ],
)
def test_a_mask_is_read_where_it_says_something(image: Image.Image, source: str, tmp_path: Path) -> None:
    said: list[str] = []
    mask = read_mask(save(tmp_path / "mask.png", image), "--mask", said.append)
    assert mask.getbbox() == STROKES and source in said[0] and "25.5% is repainted" in said[0]


def wide_gamut(name: str) -> bytes:
    """An RGB profile whose green is more saturated than sRGB's: the matrix of sRGB's own, changed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    places = {
        bytes(profile[at : at + 4]): int.from_bytes(profile[at + 4 : at + 8], "big")
        for at in range(132, 132 + 12 * count, 12)
    }
    for tag, xyz in (
        (b"rXYZ", (0.515, 0.241, -0.001)),
        (b"gXYZ", (0.292, 0.692, 0.042)),
        (b"bXYZ", (0.157, 0.067, 0.784)),
    ):
        for k, value in enumerate(xyz):
            profile[places[tag] + 8 + 4 * k : places[tag] + 12 + 4 * k] = round(value * 65536).to_bytes(
                4, "big", signed=True
            )
    text = bytes(profile).replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be")).replace(b"sRGB", name.encode())
    return text


def test_a_colour_profile_is_converted_and_not_passed_on(tmp_path: Path) -> None:
    colour = Image.new("RGB", SIZE, (100, 200, 100))
    profile = wide_gamut("DisP")
    converted = read_picture(save(tmp_path / "p3.png", colour, icc_profile=profile), "--image")
    plain = read_picture(save(tmp_path / "plain.png", colour), "--image")
    assert plain.getpixel((0, 0)) == (100, 200, 100)
    red, green, _ = converted.getpixel((0, 0))
    assert red < 90 and green >= 199, "the same numbers mean a stronger green in Display P3"
    out = io.BytesIO()
    converted.save(out, "PNG")
    assert "icc_profile" not in Image.open(out).info
    broken = read_picture(save(tmp_path / "broken.png", colour, icc_profile=b"nonsense" * 20), "--image")
    assert broken.getpixel((0, 0)) == (100, 200, 100)


def test_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_picture(save(tmp_path / "a.jpg", Image.fromarray(ramp()), exif=exif), "--ref")
    assert image.size == SIZE[::-1]
    mask = Image.new("L", SIZE)
    mask.paste(255, (0, 0, 4, 4))
    assert read_mask(save(tmp_path / "m.jpg", mask, exif=exif, quality=100), "--mask").size == SIZE[::-1]


def bomb() -> bytes:
    """A PNG that says it has 60000 x 60000 pixels."""
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    head = bytearray(data.getvalue())
    head[16:24] = (60000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    return bytes(head)


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(data, "JPEG")
    return data.getvalue()


def tiff(values: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values).save(data, "TIFF")
    return data.getvalue()


BAD = {
    "empty.png": b"",
    "text.png": b"hello",
    "cut.png": png()[: len(png()) // 2],
    "cut.jpg": jpeg()[: len(jpeg()) // 2],
    "bomb.png": bomb(),
    "page.jpg": b"<html><body>404</body></html>",
    "32 bit.tiff": tiff(np.full((8, 8), 2**30, np.int32)),
    "floats.tiff": tiff(np.full((8, 8), 700.0, np.float32)),
    "nan.tiff": tiff(np.full((8, 8), np.nan, np.float32)),
}

PLACES: dict[str, Callable[[Path], object]] = {
    "--ref": lambda path: read_picture(path, "--ref"),
    "--image": lambda path: read_picture(path, "--image"),
    "--mask": lambda path: read_mask(path, "--mask"),
}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", list(BAD))
def test_what_is_no_picture_is_one_line(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(InputError, match=rf"^{place}: ") as told:
        PLACES[place](tmp_path / name)
    assert "\n" not in str(told.value) and name in str(told.value)


@pytest.mark.parametrize("name", list(BAD))
def test_and_is_found_in_a_subjects_folder_before_any_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "mug").mkdir()
    for number in range(3):
        save(tmp_path / "mug" / f"{number}.png", Image.fromarray(ramp()))
    (tmp_path / "mug" / name).write_bytes(BAD[name])
    (line,) = unusable_pictures(read_subjects(tmp_path, ["a {object}"], 1))
    assert line.startswith("evaluate.subjects: ") and "\n" not in line and name in line


def test_folders_of_operating_systems_are_no_subjects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("mug", "__MACOSX", "@eaDir", "lost+found", ".hidden"):
        (tmp_path / folder).mkdir()
    for number in ("00 (1)", "00", "2", "10"):
        save(tmp_path / "mug" / f"{number}.png", Image.fromarray(ramp()))
    for other in ("Thumbs.db", ".DS_Store", "._00.png", "notes.docx", "film.mp4"):
        (tmp_path / "mug" / other).write_bytes(b"x")
    (subject,) = read_subjects(tmp_path, ["a {object}"], 1)
    assert [path.name for path in (*subject.references, *subject.real)] == ["00.png", "00 (1).png", "2.png", "10.png"]
    assert f"2 files of {str(tmp_path)!r} are no pictures (.docx, .mp4)" in caplog.text
    assert [path.name for path in picture_paths(tmp_path / "mug")[1]] == ["film.mp4", "notes.docx"]
