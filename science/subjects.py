"""Makes folders of toy subjects with five references each, from the shipped ones, which have one.

A subject's folder gets four pictures more, between its reference and the pictures that are compared with: `01.png` to
`04.png` show it in scenes, with everything but the subject transparent. The transparent pixels keep their colours. So
BootPIG reads the cut-out subject, and methods that are trained on whole pictures (DreamBooth, Textual Inversion) find
the whole picture in the same file, see `whole_picture`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from bootpig.models.toy.subject_folder import FOLDER, PICTURES, VALIDATION, VALIDATION_SEED, draw_subject
from bootpig.models.toy.world import SCENES, render_scene
from science import WORK

REFERENCES = 5

FOLDERS = {WORK / "subjects": (FOLDER, 0), WORK / "validation": (VALIDATION, VALIDATION_SEED)}
"""Folder to make → the shipped one, and the seed that it was made with."""


def write_folder(target: Path, shipped: Path, seed: int) -> None:
    """Make `target`, unless it exists. `seed` is that of `shipped`."""
    if target.is_dir():
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    entries = yaml.safe_load((shipped / "subjects.yaml").read_text(encoding="utf-8"))
    for index, (name, entry) in enumerate(entries.items()):
        folder = partial / name
        folder.mkdir(parents=True)
        shutil.copy(shipped / name / "00.png", folder / "00.png")
        for number in range(1, PICTURES + 1):
            shutil.copy(shipped / name / f"{number:02d}.png", folder / f"{number + REFERENCES - 1:02d}.png")
        for number, picture in enumerate(_references(index, seed), start=1):
            picture.save(folder / f"{number:02d}.png", optimize=True)
        captions = entry["captions"].items()
        entry["captions"] = {f"{int(file[:2]) + REFERENCES - 1:02d}.png": caption for file, caption in captions}
    (partial / "subjects.yaml").write_text(yaml.safe_dump(entries, sort_keys=False, width=120), encoding="utf-8")
    partial.rename(target)


def whole_picture(file: Path) -> Image.Image:
    """A picture of a subject with its background, RGB, whether or not it is transparent."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _references(index: int, seed: int) -> list[Image.Image]:
    """RGBA 64×64: subject `index` of the folder of `seed` in four scenes, none of them one of its prompts."""
    drawn = draw_subject(index, seed)
    unused = [scene for scene in SCENES if scene not in drawn.scenes]
    scenes = [*unused, *drawn.scenes[:PICTURES]]  # without those of the prompts
    pictures = []
    for number, scene in enumerate(scenes[: REFERENCES - 1]):
        seeded = f"{drawn.draws}/reference {number}"
        render = render_scene(seeded, "held_out", kind=drawn.kind, identity=drawn.identity, scene=scene)
        alpha = np.where(render.mask, 255, 0).astype(np.uint8)
        pictures.append(Image.fromarray(np.dstack([render.image, alpha])))
    return pictures
