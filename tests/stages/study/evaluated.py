"""Folders of evaluations as `bootpig evaluate` writes them, with pictures that tell what they are by their colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bootpig.stages.engine.contract import InputError
from bootpig.stages.study.evaluations import Contestant, Evaluation, contestants, read_evaluation
from bootpig.stages.study.pairs import choose_pairs
from bootpig.stages.study.study import Study, make_study

PROMPTS = ("a mug on a beach", "a mug in the snow")


def write_evaluation(
    folder: Path,
    methods: Sequence[str] = ("text_only", "bootpig"),
    subjects: Sequence[str] = ("dog6", "mug"),
    prompts: Sequence[str] = PROMPTS,
    images: int = 2,
    side: int = 32,
    red: int = 0,
    lost: Sequence[str] = (),
) -> Path:
    """Write one.

    Args:
        red: makes the pictures of two evaluations differ.
        lost: files without a picture, as of those that were not finite.
    """
    (folder / "images" / "reference").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, subject in enumerate(subjects):
        pixels = np.zeros((side, side, 3), np.uint8)
        pixels[: side // 2] = 40 * number
        pixels[side // 2 :] = 255
        Image.fromarray(pixels).save(folder / "images" / "reference" / f"{subject}-00.png")
    for place, method in enumerate(methods):
        (folder / "images" / method).mkdir()
        for number, subject in enumerate(subjects):
            for line, prompt in enumerate(prompts):
                for image in range(images):
                    file = f"images/{method}/{subject}-{line:02d}-{image:02d}.png"
                    note = PngInfo()
                    note.add_text("method", method)
                    colour = (red, 60 * place, 40 * number + 20 * line + 5 * image)
                    if file not in lost:
                        Image.new("RGB", (side, side), colour).save(folder / file, pnginfo=note, dpi=(90, 90))
                    verdict = {"status": "failed" if file in lost else "ok"}
                    rows.append({"method": method, "subject": subject, "prompt": prompt, "file": file, **verdict})
                    rows[-1]["dino"] = red / 255
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    return folder


def evaluation(folder: Path) -> Evaluation:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return read_evaluation(folder.name, (folder / "scores.parquet").read_bytes(), files, lambda names: folder)


def study_of(folder: Path, evaluations: Sequence[Path], methods: Sequence[str] = (), count: int | None = None) -> Study:
    """A new study in `folder`."""
    found: list[Contestant] = contestants([evaluation(path) for path in evaluations], methods)
    return make_study(folder, found, choose_pairs(found, count, 0), lambda *_: None)


def refusal(call: Any, *arguments: Any) -> str:
    """The message of the InputError that a call raises, which has one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
