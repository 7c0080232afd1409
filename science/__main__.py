"""`python -m science`: runs all experiments that are not in the store yet, and writes docs/science.md.

    python -m science                    # everything but tuning, as `make science` does
    python -m science page               # only the page, from what is in the store
    python -m science sweeps data views  # these sweeps
    python -m science train dreambooth   # the models of these other methods
    python -m science tune dreambooth    # their settings, on validation subjects; into science/tuning.json
    python -m science inpaint

Every part can be killed and run again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from bootpig.stages.engine.contract import InputError
from science import WORK
from science.recipes import RECIPES
from science.subjects import FOLDERS, write_folder

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

FIRST = (
    "ours",
    "trained-parts",
    "references",
    "dropping",
    "guidance",
    "updates",
    "data",
    "selection",
    "table-1",
    "views",
)
"""Sweeps in the order in which they run; those that share a training follow each other."""
AFTER_TRAINING = ("rivals",)
"""Sweeps that read what `train` makes."""
LAST = ("updates-long",)
SWEEPS = FIRST + AFTER_TRAINING + LAST

VALIDATION_SUBJECTS = 6
"""Of `tune`."""


def main() -> int:
    """Run what was asked for. Returns 0, or 1 if a part failed; the others ran nevertheless."""
    parser = argparse.ArgumentParser(
        prog="python -m science", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=["all", "sweeps", "train", "tune", "inpaint", "page"])
    parser.add_argument("names", nargs="*", help="sweeps, or methods; default: all")
    parser.add_argument("--root", help="the store; default: that of the configurations")
    asked = parser.parse_args()
    known = {"sweeps": SWEEPS, "train": tuple(RECIPES), "tune": tuple(RECIPES)}.get(asked.part, ())
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"{unknown[0]!r} is not known to {asked.part}; choose from {', '.join(known) or 'nothing'}")
    for target, (shipped, seed) in FOLDERS.items():
        write_folder(target, shipped, seed)
    names, failed = asked.names or known, False
    if asked.part == "sweeps":
        failed = run_sweeps(names, asked.root)
    elif asked.part in ("train", "tune", "inpaint"):
        failed = not run_part(asked.part, names, asked.root)
    elif asked.part == "all":
        failed = run_sweeps(FIRST, asked.root)
        failed |= not run_part("train", tuple(RECIPES), asked.root)
        failed |= not run_part("inpaint", (), asked.root)
        failed |= run_sweeps(AFTER_TRAINING + LAST, asked.root)
    if asked.part in ("all", "page"):
        write(asked.root)
    return int(failed)


def run_sweeps(names: Sequence[str], root: str | None) -> bool:
    """Run sweeps one after the other, each in a process of its own, without those of which all runs are in the store.
    Returns whether one failed."""
    from science.results import read_results

    failed = False
    for name in names:
        found = read_results([HERE / f"{name}.yaml"], root)
        if not found.unreadable and not found.missing():
            print(f"science: {name}: all {found.count()[1]} runs are in the store", flush=True)
            continue
        command = [sys.executable, "-m", "bootpig", "sweep", str(sweep_file(name, root))]
        print(f"science: {' '.join(command[2:])}", flush=True)
        failed |= subprocess.run(command, check=False).returncode != 0
    return failed


def sweep_file(name: str, root: str | None) -> Path:
    """The file of a sweep. With another store, a copy that names it."""
    file = HERE / f"{name}.yaml"
    if root is None:
        return file
    copy = WORK / "sweeps" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    copy.write_text(yaml.safe_dump({**settings, "root": root}, sort_keys=False), encoding="utf-8")
    return copy


def run_part(part: str, names: Sequence[str], root: str | None) -> bool:
    """Train or tune other methods, or measure inpainting. Returns whether it was done."""
    from science import inpainting
    from science.page import TUNING
    from science.recipes import RECIPES
    from science.tune import subjects_of, train, tune

    try:
        if part == "inpaint":
            inpainting.measure(root)
        for name in names:
            if part == "tune":
                tune(name, VALIDATION_SUBJECTS, root, TUNING)
            else:
                train(name, subjects_of(WORK / "subjects"), WORK / name, RECIPES[name], root)
    except InputError as error:
        print(error, file=sys.stderr)
        return False
    return True


def write(root: str | None) -> None:
    """Write docs/science.md and its pictures."""
    from science.page import write_page
    from science.results import read_results

    results = read_results([HERE / f"{name}.yaml" for name in SWEEPS], root)
    page = write_page(results, DOCS)
    there, wanted = results.count()
    print(f"{page}: {there} of {wanted} runs")


if __name__ == "__main__":
    sys.exit(main())
