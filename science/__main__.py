"""`python -m science`: runs all experiments that are not in the store yet, and writes docs/science.md.

    python -m science                       # everything but tuning, as `make science` does
    python -m science --jobs 1              # not several parts at a time
    python -m science page                  # only the page, from the store and what was recorded before
    python -m science sweeps data views     # these sweeps
    python -m science train dreambooth      # the models of these other methods
    python -m science inpaint
    python -m science sweeps guidance-five  # tuning of BootPIG's guidance, on validation subjects
    python -m science tune dreambooth       # tuning of these other methods there; into science/tuning.json

Every part can be killed and run again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from bootpig.stages.engine.contract import InputError
from science import WORK
from science.parts import Part, run_parts
from science.recipes import RECIPES, RUN
from science.record import read_others, read_record, write_record
from science.subjects import write_folders

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

SWEEPS = {
    "trained-parts": (72, ["samples"]),
    "ours": (40, ["samples"]),
    "references": (14, ["trained-parts"]),
    "guidance": (13, ["trained-parts"]),
    "trained-parts-guidance": (12, ["trained-parts"]),
    "moved-references": (3, ["trained-parts"]),
    "dropping": (27, ["trained-parts"]),
    "guidance-five": (14, ["trained-parts", "ours"]),
    "table-1": (4, ["trained-parts", "ours"]),
    "selection": (9, ["ours"]),
    "updates": (4, ["ours"]),
    "data": (20, ["ours"]),
    "views": (25, ["ours"]),
    "updates-long": (32, ["ours"]),
    "rivals": (2, ["ours"]),
}
"""Sweep → its minutes on one core, and what comes before it: the data, sweeps that share its trainings."""

TUNING_SWEEPS = {"guidance-five"}
"""Sweeps that choose settings on validation subjects, as `tune` does for the other methods. Not part of all."""

METHODS = {"dreambooth": 14, "dreambooth-lora": 18, "textual-inversion": 7, "ip-adapter": 4}
"""Other method → the minutes of its training on one core."""

VALIDATION_SUBJECTS = 6
"""Of `tune`."""


def main() -> int:
    """Run what was asked for. Returns 0; 1 if a part failed, the others ran nevertheless; 2 if the record is
    damaged."""
    parser = argparse.ArgumentParser(
        prog="python -m science", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=["all", "sweeps", "train", "tune", "inpaint", "page"])
    parser.add_argument("names", nargs="*", help="sweeps, or methods; default: all")
    parser.add_argument("--root", help="the store; default: that of the configurations")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=min(2, cores), help="parts at a time; default: 2, or 1 on one core")
    parser.add_argument("--threads", type=int, help="of each part; default: as many as there are cores for it")
    asked = parser.parse_args()
    for option in ("jobs", "threads"):
        if (value := getattr(asked, option)) is not None and value < 1:
            parser.error(f"--{option}: {value} → must be at least 1")
    known = {"sweeps": tuple(SWEEPS), "train": tuple(RECIPES), "tune": tuple(RECIPES)}.get(asked.part, ())
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"{unknown[0]!r} is not known to {asked.part}; choose from {', '.join(known) or 'nothing'}")
    if asked.part in ("all", "page"):
        try:
            read_record()  # before hours of work
            read_others()
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
    write_folders()
    names, failed = asked.names or known, False
    if asked.part == "sweeps":
        failed = run_sweeps(names, asked.root, asked.threads)
    elif asked.part in ("train", "tune", "inpaint"):
        failed = not run_part(asked.part, names, asked.root)
    elif asked.part == "all":
        threads = asked.threads or max(1, cores // asked.jobs)
        failed = bool(run_parts(all_parts(asked.root, threads), asked.jobs, threads))
    if asked.part in ("all", "page"):
        write(asked.root)
    return int(failed)


def all_parts(root: str | None, threads: int) -> list[Part]:
    """Everything but tuning and the page, in the order in which it is to begin."""
    store = [] if root is None else ["--root", root]
    data = ["bootpig", "run", RUN, "--until", "encode", "--set", f"threads={threads}"]
    parts = [Part("samples", [*data, *([] if root is None else ["--set", f"root={root}"])], 2)]
    for name, (minutes, after) in SWEEPS.items():
        if name in TUNING_SWEEPS:
            continue
        if name == "rivals":
            after = [*after, *METHODS]
        arguments = ["science", "sweeps", name, "--threads", str(threads), *store]
        parts.append(Part(name, arguments, minutes, after))
    for name, minutes in METHODS.items():
        parts.append(Part(name, ["science", "train", name, *store], minutes, ["samples"]))
    parts.append(Part("inpaint", ["science", "inpaint", *store], 1, ["ours"]))
    return parts


def run_sweeps(names: Sequence[str], root: str | None, threads: int | None = None) -> bool:
    """Run sweeps one after the other, each in a process of its own, without those of which all runs are in the store.
    Returns whether one failed."""
    from science.results import read_results

    failed = False
    for name in names:
        found = read_results([HERE / f"{name}.yaml"], root)
        if not found.unreadable and not found.missing():
            print(f"science: {name}: all {found.count()[1]} runs are in the store", flush=True)
            continue
        command = [sys.executable, "-m", "bootpig", "sweep", str(sweep_file(name, root, threads))]
        print(f"science: {' '.join(command[2:])}", flush=True)
        failed |= subprocess.run(command, check=False).returncode != 0
    return failed


def sweep_file(name: str, root: str | None, threads: int | None = None) -> Path:
    """The file of a sweep. With another store or number of threads, a copy that names it."""
    file = HERE / f"{name}.yaml"
    if root is None and threads is None:
        return file
    copy = WORK / "sweeps" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    if root is not None:
        settings["root"] = root
    if threads is not None:  # changes no result, so no fingerprint
        settings["grid"] = {**settings.get("grid", {}), "threads": [threads]}
    copy.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return copy


def run_part(part: str, names: Sequence[str], root: str | None) -> bool:
    """Train or tune other methods, or measure inpainting. Returns whether it was done."""
    from science import inpainting
    from science.page import TUNING
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
    """Write docs/science.md, its pictures and the record, and show table 1 and the verdicts."""
    from science.page import provenance, write_page
    from science.results import read_results
    from science.tables import measured_others
    from science.terminal import show

    results = read_results([HERE / f"{name}.yaml" for name in SWEEPS], root, read_record(), provenance())
    results = replace(results, others={**read_others(), **measured_others()})
    if not results.unreadable:  # what was recorded of a sweep that cannot be read would be dropped
        write_record(results)
    page = write_page(results, DOCS)
    show(results)
    there, wanted = results.count()
    print(f"{page}: {there} of {wanted} runs are measured")


if __name__ == "__main__":
    sys.exit(main())
