"""Makes the folder of held-out toy subjects for `evaluate`: `python -m bootpig.models.toy.subject_folder`.

The folder has DreamBooth's layout. `<subject>/00.png` is the reference, the subject on white; `01.png` and up show it
in scenes. `subjects.yaml` has the class of each subject, its two prompts, and a caption for each picture in a scene.
All pictures and prompts of a subject use different scenes, so generated and real pictures are compared across scenes,
just like real pictures with each other.

The shipped folder `subjects_held_out` is for results only. Settings are chosen on `subjects_validation`, which has
other identities. It is made by `--seed 1 --subjects 24 --out models/toy/subjects_validation`.
"""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, caption, draw_identity, render_reference, render_scene

FOLDER = Path(__file__).parent / "subjects_held_out"
SUBJECTS = 32
PICTURES = 5
CAPTIONS = 2
FILL = 0.8

VALIDATION = FOLDER.with_name("subjects_validation")
VALIDATION_SUBJECTS, VALIDATION_SEED = 24, 1


@dataclass(frozen=True)
class Drawn:
    """What is drawn at random about a subject."""

    kind: str
    identity: int
    scenes: tuple[str, ...]
    """Those of its pictures, and then those of its prompts."""
    draws: str
    """The seed of all further draws."""
    rng: random.Random


def draw_subject(index: int, seed: int = 0) -> Drawn:
    """Draw subject `index` of `seed`."""
    kind = KINDS[index % len(KINDS)]
    draws = f"subject folder/{index}" if seed == 0 else f"subject folder/seed {seed}/{index}"
    rng = random.Random(draws)
    identity = draw_identity(rng, kind, "held_out")
    return Drawn(kind, identity, tuple(rng.sample(SCENES, PICTURES + CAPTIONS)), draws, rng)


def write_subject(folder: Path, index: int, seed: int = 0) -> dict[str, object]:
    """Render subject `index` of `seed` to a new folder `folder`, and return its entry for subjects.yaml."""
    drawn = draw_subject(index, seed)
    kind, identity, scenes, draws = drawn.kind, drawn.identity, drawn.scenes, drawn.draws
    folder.mkdir(parents=True)
    render_reference(kind, identity, FILL).save(folder / "00.png", optimize=True)
    captions = {}
    for number, scene in enumerate(scenes[:PICTURES], start=1):
        render = render_scene(f"{draws}/{number}", "held_out", kind=kind, identity=identity, scene=scene)
        Image.fromarray(render.image).save(folder / f"{number:02d}.png", optimize=True)
        captions[f"{number:02d}.png"] = render.caption
    prompts = [caption(kind, drawn.rng.choice(POSITIONS), scene) for scene in scenes[PICTURES:]]
    return {"class": kind, "prompts": prompts, "captions": captions}


def write_folder(folder: Path, subjects: int = SUBJECTS, seed: int = 0) -> None:
    """Write the whole folder. An existing folder is replaced once the new one is complete. Each `seed` has identities
    of its own."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    entries = {}
    for index in range(subjects):
        name = f"{KINDS[index % len(KINDS)]}-{index // len(KINDS)}"
        entries[name] = write_subject(partial / name, index, seed)
    text = yaml.safe_dump(entries, sort_keys=False, width=120)
    (partial / "subjects.yaml").write_text(f"# made by `python -m models.toy.subject_folder`\n{text}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write; an existing one is replaced")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help="number of identities")
    parser.add_argument("--seed", type=int, default=0, help="another seed has other identities and scenes")
    arguments = parser.parse_args()
    write_folder(arguments.out, arguments.subjects, arguments.seed)
    print(f"{arguments.subjects} subjects in {arguments.out}")


if __name__ == "__main__":
    main()
