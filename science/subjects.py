"""Makes folders of toy subjects with five references each, from the shipped ones, which have one; and one with moved
references.

A subject's folder gets four pictures more, between its reference and the pictures that are compared with: `01.png` to
`04.png` show it in scenes, with everything but the subject transparent. The transparent pixels keep their colours. So
BootPIG reads the cut-out subject, and methods that are trained on whole pictures (DreamBooth, Textual Inversion) find
the whole picture in the same file, see `whole_picture`.

Beside a folder is a file with the captions of those four. The base model of the toy world follows only captions like
those it was trained on, with a place: shorter ones, and words that move its place within the sentence, lose the place
and the class. So these methods are trained on captions, not on `A photo of a sks mug`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageOps

from bootpig.models.toy.subject_folder import FOLDER, PICTURES, VALIDATION, VALIDATION_SEED, draw_subject
from bootpig.models.toy.world import SCENES, Scene, render_scene
from bootpig.stages.evaluate.prompts import with_object
from bootpig.stages.evaluate.subjects import Subject
from science import WORK

REFERENCES = 5

MOVED_SCALE = 0.6
"""The size of a moved reference, of its size before."""


def write_folders() -> None:
    """Make all folders that sweeps read, unless they exist."""
    write_folder(WORK / "subjects", FOLDER, 0)
    write_folder(WORK / "validation", VALIDATION, VALIDATION_SEED)
    write_moved(WORK / "moved", FOLDER)


def write_moved(target: Path, shipped: Path) -> None:
    """Make a copy of `shipped` whose references are smaller, mirrored and in a corner, unless it exists. In training,
    references that are not augmented are never so."""
    if target.is_dir():
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(shipped, partial)
    for number, file in enumerate(sorted(partial.glob("*/00.png"))):
        with Image.open(file) as picture:
            white = Image.new("RGB", picture.size, "white")
            small = ImageOps.mirror(ImageOps.scale(picture.convert("RGB"), MOVED_SCALE))
        free = white.width - small.width, white.height - small.height
        white.paste(small, (free[0] * (number % 2), free[1] * (number // 2 % 2)))
        white.save(file, optimize=True)
    partial.rename(target)


def write_folder(target: Path, shipped: Path, seed: int) -> None:
    """Make `target` and the captions of its references, unless they exist. `seed` is that of `shipped`."""
    entries = yaml.safe_load((shipped / "subjects.yaml").read_text(encoding="utf-8"))
    captions = captions_file(target)
    if target.is_dir() and captions.is_file():
        return
    scenes = {name: _references(index, seed) for index, name in enumerate(entries)}
    if not target.is_dir():
        _write_pictures(target, shipped, entries, scenes)
    said = {name: {f"{n:02d}.png": each.caption for n, each in enumerate(own, 1)} for name, own in scenes.items()}
    partial = captions.with_name(f"{captions.name}.partial")
    partial.write_text(yaml.safe_dump(said, sort_keys=False, width=120), encoding="utf-8")
    partial.rename(captions)


def captions_file(folder: Path) -> Path:
    """The file with the captions of the references of `folder`. Beside it, so that it is no part of what BootPIG's
    evaluations depend on."""
    return folder.with_name(f"{folder.name}_captions.yaml")


def captioned(subject: Subject) -> list[tuple[Path, str]]:
    """The references that show a subject in a scene, and their captions with `{object}` in place of the class.

    The first reference is left out: it is on white, which no caption of the base model describes.
    """
    folder = subject.references[0].parents[1]
    said = yaml.safe_load(captions_file(folder).read_text(encoding="utf-8"))[subject.name]
    return [(path, with_object(said[path.name], subject.object)) for path in subject.references if path.name in said]


def mirrored(caption: str) -> str:
    """The caption of a picture's mirror image."""
    left, right = "on the left", "on the right"
    return caption.replace(right, left) if right in caption else caption.replace(left, right)


def whole_picture(file: Path) -> Image.Image:
    """A picture of a subject with its background, RGB, whether or not it is transparent."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _write_pictures(target: Path, shipped: Path, entries: Mapping[str, Any], scenes: Mapping[str, list[Scene]]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, entry in entries.items():
        folder = partial / name
        folder.mkdir(parents=True)
        shutil.copy(shipped / name / "00.png", folder / "00.png")
        for number in range(1, PICTURES + 1):
            shutil.copy(shipped / name / f"{number:02d}.png", folder / f"{number + REFERENCES - 1:02d}.png")
        for number, render in enumerate(scenes[name], start=1):
            alpha = np.where(render.mask, 255, 0).astype(np.uint8)
            Image.fromarray(np.dstack([render.image, alpha])).save(folder / f"{number:02d}.png", optimize=True)
        captions = entry["captions"].items()
        entry["captions"] = {f"{int(file[:2]) + REFERENCES - 1:02d}.png": caption for file, caption in captions}
    (partial / "subjects.yaml").write_text(yaml.safe_dump(entries, sort_keys=False, width=120), encoding="utf-8")
    partial.rename(target)


def _references(index: int, seed: int) -> list[Scene]:
    """Subject `index` of the folder of `seed` in four scenes, none of them one of its prompts."""
    drawn = draw_subject(index, seed)
    unused = [scene for scene in SCENES if scene not in drawn.scenes]
    scenes = [*unused, *drawn.scenes[:PICTURES]]  # without those of the prompts
    return [
        render_scene(
            f"{drawn.draws}/reference {number}", "held_out", kind=drawn.kind, identity=drawn.identity, scene=scene
        )
        for number, scene in enumerate(scenes[: REFERENCES - 1])
    ]
