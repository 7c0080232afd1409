"""A folder of subjects in DreamBooth layout: `<folder>/<subject>/<picture>`, one folder per subject.

The first pictures in natural order are the references. What a subject is called comes from, in this order:
`subjects.yaml` (`<subject>: {class: mug, prompts: […], captions: {01.png: …}}`), the `subject,class` lines of
DreamBooth's own `prompts_and_classes.txt`, the folder's name without its number (`berry_bowl`, `dog6`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.benchmarks.dreambench_plus import read_dreambench_plus
from bootpig.stages.evaluate.benchmarks.dreambooth import read_dreambooth
from bootpig.stages.evaluate.benchmarks.listed import Kind
from bootpig.stages.evaluate.prompts import fill, with_object
from bootpig.stages.picture_files.folders import folders_of_pictures, picture_paths
from bootpig.stages.picture_files.reader import read_picture, reference_problem
from bootpig.stages.pictures import on_all_cores
from bootpig.stages.text_files import parse_yaml, read_text

_LOG = logging.getLogger(__name__)

References = int | Literal["all"]
Benchmark = Literal["dreambooth", "dreambench++"]


@dataclass(frozen=True)
class Subject:
    """One subject to draw, and the real pictures that the drawings are compared with."""

    name: str
    object: str
    """The class word: `mug`."""
    prompts: tuple[str, ...]
    references: tuple[Path, ...]
    real: tuple[Path, ...]
    """At least two; in a benchmark with one picture per subject, one. Without the references, unless every picture is
    one."""
    captions: Mapping[str, str]
    """What a real picture shows, by file name, where that is known."""
    section: str = "evaluate"
    """Section of the configuration that names its folder, for messages."""
    templates: tuple[str, ...] = ()
    """The prompts with `{object}` in place of the class, where they name it. Empty: not known."""
    kind: Kind = "object"


class _Entry(BaseModel):
    """One subject's part of subjects.yaml."""

    model_config = ConfigDict(extra="forbid")

    object: str | None = Field(None, alias="class", min_length=1)
    prompts: list[str] = []
    captions: dict[str, str] = {}


def read_subjects(
    folder: Path,
    prompts: Sequence[str],
    references: References,
    section: str = "evaluate",
    compared: int | None = None,
) -> list[Subject]:
    """The subjects of `folder` by name. No picture is opened, see `unusable_pictures`.

    Args:
        prompts: for subjects that list none of their own; `{object}` stands for the class word.
        references: how many pictures of a subject are references; the others are compared with. `"all"`: every picture
            is both, as in the paper's table.
        section: section of the configuration that names the folder, for messages.
        compared: compare with only so many of them, the last by name. None: with all.

    Raises:
        InputError: an unreadable folder, no subject, too few pictures or no prompt for a subject; one line.
    """
    try:
        names = [path.name for path in folders_of_pictures(folder)]
        found = {name: picture_paths(folder / name) for name in names}
    except OSError as error:
        where = str(error.filename or folder)
        problem = f"{where!r} cannot be read ({error.strerror}); check its permissions"
        raise InputError(f"{section}.subjects: {problem}") from None
    if not names:
        raise InputError(
            f"{section}.subjects: {str(folder)!r} holds no folder of pictures; give <subject>/00.png, 01.png, …"
        )
    entries, classes = _entries(folder, names, section), _classes(folder)
    subjects = []
    for name in names:
        entry = entries.get(name, _Entry.model_validate({}))
        noun = entry.object or classes.get(name) or re.sub(r"[\d_-]+$", "", name).replace("_", " ") or name
        own = tuple(fill(prompt, noun) for prompt in entry.prompts or prompts)
        if not own:
            hint = ", or set evaluate.benchmark: dreambooth" if section == "evaluate" and classes else ""
            raise InputError(
                f"{section}.prompts: subject {name!r} has no prompt; list some in subjects.yaml or in {section}.prompts"
                f"{hint}"
            )
        chosen, real = _split(name, found[name][0], references, section, compared)
        templates = tuple(with_object(prompt, noun) for prompt in entry.prompts or prompts)
        subjects.append(Subject(name, noun, own, chosen, real, entry.captions, section, templates))
    if others := [path for _, left_out in found.values() for path in left_out]:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in others})[:5])
        _warn_once(f"{section}.subjects: {len(others)} files of {str(folder)!r} are no pictures ({kinds}), left out")
    return subjects


def benchmark_subjects(
    folder: Path, benchmark: Benchmark, references: References, section: str = "evaluate"
) -> list[Subject]:
    """The subjects of a published benchmark by name, with its own classes and prompts. No picture is opened.

    The only picture of a subject is both a reference and compared with.

    Args:
        references, section: as in `read_subjects`.

    Raises:
        InputError: the folder is not that benchmark, or not whole; one line per problem.
    """
    read = {"dreambooth": read_dreambooth, "dreambench++": read_dreambench_plus}[benchmark]
    try:
        listed = read(folder, section)
    except OSError as error:
        where = str(error.filename or folder)
        problem = f"{where!r} cannot be read ({error.strerror}); check its permissions"
        raise InputError(f"{section}.subjects: {problem}") from None
    subjects = []
    for each in listed:
        pictures = list(each.pictures)
        chosen, real = (each.pictures,) * 2 if len(pictures) == 1 else _split(each.name, pictures, references, section)
        subjects.append(
            Subject(each.name, each.object, each.prompts, chosen, real, {}, section, each.templates, each.kind)
        )
    return subjects


def unusable_pictures(subjects: Sequence[Subject]) -> list[str]:
    """Decode every picture of `subjects` to its end. A file that has not changed is decoded once per process.

    Returns:
        A line for each that cannot be read, or cannot be the reference that it is.
    """
    asked = dict.fromkeys((path, False, subject.section) for subject in subjects for path in subject.real)
    asked |= dict.fromkeys((path, True, subject.section) for subject in subjects for path in subject.references)
    return list(dict.fromkeys(problem for problem in on_all_cores(_problem, list(asked)) if problem))


def _problem(asked: tuple[Path, bool, str]) -> str:
    path, is_reference, section = asked
    try:
        facts = path.stat()
    except OSError:
        return _problem_of(path, is_reference, section, 0, 0, 0)
    return _problem_of(path, is_reference, section, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=65536)
def _problem_of(path: Path, is_reference: bool, section: str, size: int, mtime_ns: int, inode: int) -> str:
    """Size, time and inode are the cache's key: a changed file is read again."""
    try:
        picture = read_picture(path, f"{section}.subjects")
    except InputError as error:
        return str(error)
    problem = reference_problem(picture) if is_reference else None
    return f"{section}.subjects: {str(path)!r} → {problem}" if problem else ""


def _split(
    name: str, pictures: list[Path], references: References, section: str, compared: int | None = None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    if references == "all":
        chosen, real = tuple(pictures), tuple(pictures)
        need = f"at least {compared or 2} are needed"
    else:
        chosen, real = tuple(pictures[:references]), tuple(pictures[references:])
        need = f"{references} as reference and {compared or 2} or more to compare with are needed"
    if len(real) < (compared or 2):
        lower = [] if references in ("all", 1) else [f"{section}.references"]
        lower += [] if compared is None else [f"{section}.compared"]
        fix = f", or lower {' or '.join(lower)}" if lower else ""
        raise InputError(f"{section}.subjects: {name!r} has {len(pictures)} pictures; {need}; add pictures{fix}")
    return chosen, real if compared is None else real[-compared:]


@lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    _LOG.warning("%s", text)


def _entries(folder: Path, names: Sequence[str], section: str) -> dict[str, _Entry]:
    path = folder / "subjects.yaml"
    if not path.exists():
        return {}
    try:
        listed = parse_yaml(read_text(f"{section}.subjects", path, "give a UTF-8 YAML file"))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{section}.subjects: {str(path)!r} is not readable YAML ({error})") from None
    try:
        entries = TypeAdapter(dict[str, _Entry]).validate_python(listed or {})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{section}.subjects: {str(path)!r}: {problems}") from None
    if unknown := sorted(set(entries) - set(names)):
        raise InputError(f"{section}.subjects: {str(path)!r} names {', '.join(unknown)}, but there is no such folder")
    return entries


def _classes(folder: Path) -> dict[str, str]:
    path = folder / "prompts_and_classes.txt"
    if not path.exists():
        return {}
    rows = re.findall(r"^([\w-]+),([\w -]+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return {name: noun.strip() for name, noun in rows}
