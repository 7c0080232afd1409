"""Readers of pictures, fed with damaged files: a picture, or one line of their own error.

Two seconds a reader; `BOOTPIG_FUZZ_SECONDS=60` takes longer. A failure prints its seed and keeps its file.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.models.pipelines.inpaint_view import crop, in_proportion, repainted_cells, view_box
from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.subjects import read_subjects, unusable_pictures
from bootpig.stages.picture_files.folders import natural_order
from bootpig.stages.picture_files.masks import read_mask
from bootpig.stages.picture_files.reader import read_picture

SECONDS = float(os.environ.get("BOOTPIG_FUZZ_SECONDS", "2"))

FORMATS = [
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "AVIF",
    "JPEG2000",
    "PPM",
    "TGA",
    "QOI",
    "SGI",
    "PCX",
    "ICO",
    "DDS",
]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]


def whole_files() -> list[bytes]:
    """Small pictures of every mode in every format that keeps it; some with a profile, EXIF, or frames."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for format in FORMATS:
        for mode in MODES:
            grey = pixels.convert("L")
            image = grey.convert(mode) if mode in ("I;16", "F") else pixels.convert(mode)
            for options in ({}, {"exif": exif, "icc_profile": b"profile" * 9}, {"save_all": True}):
                data = io.BytesIO()
                try:
                    image.save(data, format, **options)
                except (OSError, ValueError, KeyError):
                    continue
                files.append(data.getvalue())
    assert len(files) > 100
    return files


def damaged(dice: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(out))
        kind = dice.randrange(5)
        if kind == 0:
            out[at] = dice.randrange(256)
        elif kind == 1:
            out[at : at + 4] = dice.choice([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00"])
        elif kind == 2:
            del out[at : at + dice.randint(1, 40)]
        elif kind == 3:
            out[at:at] = out[max(0, at - 30) : at]
        else:
            out = out[: at + 1]
        if not out:
            return b""
    return bytes(out)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("BOOTPIG_FUZZ_SEED", str(random.randrange(2**32))))
    print(f"BOOTPIG_FUZZ_SEED={seed}")
    return random.Random(seed)


def readers() -> dict[str, Callable[[Path], Image.Image]]:
    return {
        "picture": lambda path: read_picture(path, "--ref"),
        "bytes": lambda path: read_picture(path.read_bytes(), "--ref", path.name),
        "mask": lambda path: read_mask(path, "--mask"),
    }


@pytest.mark.parametrize("name", list(readers()))
def test_damaged_pictures(name: str, dice: random.Random, tmp_path: Path) -> None:
    read, files = readers()[name], whole_files()
    path = tmp_path / "damaged"
    end, refused, used = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end or refused + used < 100:
        path.write_bytes(damaged(dice, dice.choice(files)))
        try:
            picture = read(path)
        except InputError as error:
            text = str(error)
            assert "\n" not in text and text.startswith("--") and "; " in text and text.isprintable()
            refused += 1
        else:
            assert picture.mode in ("L", "RGB", "RGBA") and min(picture.size) > 0 and picture.info == {}
            used += 1
    assert refused and used


def test_damaged_folders_of_subjects(dice: random.Random, tmp_path: Path) -> None:
    files = whole_files()
    names = ["mug", "@eaDir", ".trash", "cat2", "lost+found"]
    end = time.monotonic() + SECONDS
    turn = 0
    while time.monotonic() < end:
        turn += 1
        folder = tmp_path / str(turn)
        for name in dice.sample(names, dice.randint(1, len(names))):
            (folder / name).mkdir(parents=True)
            for number in range(dice.randint(0, 5)):
                data = dice.choice(files)
                suffix = dice.choice([".png", ".jpg", ".TIF", "", ".txt", " (1).png", ".heic", ".dng"])
                (folder / name / f"{number}{suffix}").write_bytes(damaged(dice, data) if dice.random() < 0.5 else data)
        try:
            subjects = read_subjects(folder, ["a {object}"], dice.choice([1, 2, "all"]))
        except InputError as error:
            lines = [str(error)]
        else:
            lines = unusable_pictures(subjects)
            assert {subject.name for subject in subjects} <= {"mug", "cat2"}
        assert all("\n" not in line and line.startswith("evaluate.") for line in lines)


def test_natural_order_of_any_names(dice: random.Random) -> None:
    letters = "019 aA(.)_-²٣éß🦊\u0301"
    end = time.monotonic() + SECONDS / 4
    while time.monotonic() < end:
        names = {"".join(dice.choices(letters, k=dice.randint(1, 12))) for _ in range(20)}
        ordered = sorted(names, key=natural_order)
        assert sorted(dice.sample(ordered, len(ordered)), key=natural_order) == ordered


def test_what_the_network_sees_of_any_scene(dice: random.Random) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        picture = dice.randint(1, 300), dice.randint(1, 300)
        size = dice.choice([(64, 64), (64, 128), (96, 64)])
        left, top = dice.randrange(picture[0]), dice.randrange(picture[1])
        mask = left, top, dice.randint(left + 1, picture[0]), dice.randint(top + 1, picture[1])
        cells = size[1] // 8, size[0] // 8
        drawn = Image.new("L", picture)
        drawn.paste(255, mask)
        for box in (view_box(picture, mask, size), in_proportion(mask, picture, size)):
            width, height = box[2] - box[0], box[3] - box[1]
            assert box[0] <= mask[0] and box[1] <= mask[1] and box[2] >= mask[2] and box[3] >= mask[3]
            assert abs(width * size[1] - height * size[0]) <= max(size), "the same proportions, to the pixel"
            view = crop(Image.new("RGB", picture, "white"), box)
            assert view.size == (width, height) and view.getextrema() == ((255, 255),) * 3
            white = np.asarray(crop(drawn, box)) > 0
            repainted = repainted_cells(white, np.zeros(cells, bool))
            rows, columns = np.nonzero(white)
            touched = rows * cells[0] // height, columns * cells[1] // width
            assert repainted[touched].all(), "no cell's middle is white, so each that is touched counts"
