"""What is no usable picture, at every place that takes one: one line and exit code 2, before any model is loaded."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.flows.cli.main import main
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.subjects import read_subjects, unusable_pictures
from bootpig.stages.picture_files.folders import folders_of_pictures, natural_order, picture_paths
from bootpig.stages.picture_files.masks import read_mask
from bootpig.stages.picture_files.reader import read_picture

SIDE = 32


def noise(format: str, **options: object) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(data, format, **options)
    return data.getvalue()


def half(format: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(noise(format)[: len(noise(format)) // 2])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: None, "there is no such file; check the path"),
    "folder": (Path.mkdir, "is a folder; give a picture in it"),
    "pipe": (os.mkfifo, "is a device or a pipe; save the picture to a file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty; replace or remove it"),
    "text": (lambda path: path.write_bytes(b"a cat"), "is not a readable picture (no format that is known)"),
    "LFS": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"),
        "is a pointer of Git LFS",
    ),
    "web page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "is a web page; download the picture"),
    "SVG": (lambda path: path.write_bytes(b'<?xml version="1.0"?><svg xmlns="x"/>'), "is an SVG drawing; export it"),
    "PDF": (lambda path: path.write_bytes(b"%PDF-1.7"), "is a PDF document; export it as PNG"),
    "PostScript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0"), "is a PostScript drawing; export it"),
    "film": (lambda path: path.write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0"), "is a film; save the frame"),
    "cut PNG": (half("PNG"), "is not a readable picture ("),
    "cut JPEG": (half("JPEG"), "is not a readable picture ("),
    "cut WebP": (half("WEBP"), "is not a readable picture ("),
    "cut TIFF": (half("TIFF"), "is not a readable picture ("),
    "cut GIF": (half("GIF"), "is not a readable picture ("),
    "cut AVIF": (half("AVIF"), "is not a readable picture ("),
}


def as_option(option: str) -> Callable[[Path, Path], list[str]]:
    """What `bootpig generate` says where the picture is given as `option`. Its model has a base that is not there."""

    def lines(path: Path, folder: Path) -> list[str]:
        (folder / "bootpig.json").write_text(json.dumps({"base": "/nowhere"}))
        (folder / "good.png").write_bytes(noise("PNG"))
        good = str(folder / "good.png")
        given = {"--ref": good, "--image": good, "--mask": good, option: str(path)}
        pairs = [word for pair in given.items() for word in pair]
        assert main(["generate", str(folder), "--prompt", "a mug", *pairs]) == 2
        return []

    return lines


def as_subject(path: Path, folder: Path) -> list[str]:
    (folder / "mug").mkdir()
    for number in range(3):
        (folder / "mug" / f"{number}.png").write_bytes(noise("PNG"))
    if path.is_file() or path.is_fifo():
        shutil.move(path, folder / "mug" / "3.png")
    elif not path.exists():
        (folder / "mug" / "3.png").symlink_to("gone")
    else:
        return ["evaluate.subjects: 'picture.png' → is a folder; give a picture in it"]  # no picture of the subject
    return unusable_pictures(read_subjects(folder, ["a {object}"], 1))


PLACES = {option: as_option(option) for option in ("--ref", "--image", "--mask")} | {"evaluate.subjects": as_subject}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("kind", list(BAD))
def test_one_line_before_any_model(kind: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD[kind]
    make(tmp_path / "picture.png")
    (tmp_path / "rest").mkdir()
    lines = PLACES[place](tmp_path / "picture.png", tmp_path / "rest") or capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if not line.startswith("--mask: read from its")]
    assert line.startswith(f"{place}: '") and line.partition(" → ")[2].startswith(message)
    assert "; " in line


@pytest.mark.parametrize(
    ("picture", "line"),
    [
        (Image.new("RGBA", (SIDE, SIDE)), "is transparent everywhere; give one that shows the subject"),
        (Image.new("RGB", (SIDE, 7)), "has 32x7 pixels; give 8 a side or more"),
    ],
)
def test_a_picture_that_is_no_reference(
    picture: Image.Image, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "picture.png")
    (tmp_path / "rest").mkdir()
    PLACES["--ref"](tmp_path / "picture.png", tmp_path / "rest")
    assert capsys.readouterr().err == f"--ref: {str(tmp_path / 'picture.png')!r} → {line}\n"


@pytest.mark.parametrize("suffix", ["dng", "NEF", "cr2", "ARW"])
def test_a_raw_file_of_a_camera_is_not_its_preview(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(noise("TIFF"))
    with pytest.raises(InputError, match=r"→ is a raw file of a camera; export it as PNG, TIFF or JPEG$"):
        read_picture(path, "--ref")
    assert picture_paths(tmp_path) == ([], [path])


def test_pages_and_frames_are_said_and_previews_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    red, blue = Image.new("RGB", (SIDE, SIDE), "red"), Image.new("RGB", (SIDE, SIDE), "blue")
    for name in ("pages.tiff", "frames.gif", "frames.webp", "frames.png"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], **({"lossless": True} if "webp" in name else {}))
        for _ in range(2):
            assert read_picture(tmp_path / name, "--ref").getpixel((0, 0)) == (255, 0, 0)
        line = f"--ref: {str(tmp_path / name)!r} holds more than one picture; the first is used"
        assert caplog.messages == [line], "once"
        caplog.clear()
    small = blue.resize((8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    red.save(tmp_path / "preview.tiff", save_all=True, append_images=[small])
    red.save(tmp_path / "phone.mpo", "MPO", save_all=True, append_images=[small])
    red.save(tmp_path / "icon.ico", sizes=[(16, 16), (32, 32)])
    for name in ("preview.tiff", "phone.mpo", "icon.ico"):
        assert read_picture(tmp_path / name, "--ref").size == (SIDE, SIDE)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (np.array([0, 1], np.uint8), "values, which are 0 and 1"),
        (np.array([0, 90], np.uint8), "values, which are 0 and 90"),
        (np.array([0, 255], np.uint16), "values, which are 0 and 255"),
        (np.array([0, 1], np.int32), "values, which are 0 and 1"),
        (np.array([0, 255], np.float32), "brightness"),
        (np.array([0, 65535], np.uint16), "values, which are 0 and 65535"),
        (np.array([30, 140], np.uint8), "brightness"),
    ],
)
def test_a_mask_of_two_values(levels: np.ndarray, said: str, tmp_path: Path) -> None:
    Image.fromarray(levels[np.eye(SIDE, dtype=int)]).save(tmp_path / "mask.tiff")
    lines: list[str] = []
    mask = read_mask(tmp_path / "mask.tiff", "--mask", lines.append)
    assert np.array_equal(np.asarray(mask), np.eye(SIDE) * 255)
    if said != "brightness":
        assert said in lines[0] or levels[1] == 255
    assert "3.1% is repainted" in lines[0]


def photo_with_a_hole() -> Image.Image:
    photo = Image.fromarray(np.random.default_rng(1).integers(60, 200, (SIDE, SIDE, 3), np.uint8)).convert("RGBA")
    photo.paste((0, 0, 0, 0), (4, 4, 12, 12))
    return photo


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (photo_with_a_hole(), "is a picture with transparency, which does not tell what to repaint"),
        (Image.new("L", (SIDE, SIDE)), "is black everywhere"),
        (Image.fromarray(np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1))), "at its brightest 31 of 255, below 128"),
        (Image.linear_gradient("L").resize((SIDE, SIDE)).point(lambda v: v // 3), "below 128"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(mask: Image.Image, says: str, tmp_path: Path) -> None:
    mask.save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=says) as told:
        read_mask(tmp_path / "mask.png", "--mask")
    assert str(told.value).endswith("; give it in black and white, white is repainted")


def test_natural_order() -> None:
    names = ["00.png", "00 (1).png", "1.png", "2.png", "2b.png", "10.png", "a.png", "B.png", "img_9.png", "img_10.png"]
    assert sorted(set(names), key=natural_order) == names
    assert len({natural_order(name) for name in ("1.png", "01.png", "1.PNG")}) == 3, "equal numbers have an order, too"


def test_the_committed_subjects_are_read_as_ever() -> None:
    for folder in folders_of_pictures(FOLDER):
        pictures, others = picture_paths(folder)
        assert pictures == sorted(folder.iterdir()) and not others
        for path in pictures:
            with Image.open(path) as image:
                picture = read_picture(path, "evaluate.subjects")
                assert picture.mode == image.mode and picture.tobytes() == image.tobytes()


def test_folders_of_systems_in_any_case(tmp_path: Path) -> None:
    for name in ("mug", "__MACOSX", "@eaDir", "LOST+FOUND", "$RECYCLE.BIN", "#recycle", "System Volume Information"):
        (tmp_path / name).mkdir()
    assert [path.name for path in folders_of_pictures(tmp_path)] == ["mug"]


def test_files_without_a_suffix_are_told_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "0001").write_bytes(noise("PNG"))
    (tmp_path / "README").write_text("about these")
    (tmp_path / "LICENSE.md").write_text("of these")
    for suffix in ("bmp", "tif", "avif", "heic", "JPG", "jfif", "ppm", "gif"):
        (tmp_path / f"a.{suffix}").write_bytes(b"x")
    pictures, others = picture_paths(tmp_path)
    assert [path.name for path in others] == ["LICENSE.md", "README"]
    assert len(pictures) == 9
