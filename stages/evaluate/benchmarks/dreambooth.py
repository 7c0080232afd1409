"""Reads the folder of the DreamBooth data set: `<subject>/00.jpg`, …, and `prompts_and_classes.txt`.

The file has a table of classes (`subject_name,class`, then one line per subject) and lists of prompts, one for objects
and one for living subjects, written as lines of Python: `'a {0} {1} on a shelf'.format(unique_token, class_token),`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.benchmarks.listed import Kind, Listed, kind_of, refuse
from bootpig.stages.evaluate.prompts import OBJECT, fill
from bootpig.stages.picture_files.folders import folders_of_pictures, picture_paths
from bootpig.stages.text_files import read_lines

FILE = "prompts_and_classes.txt"

_ROW = re.compile(r"(?P<name>[^,'\"{}\[\]()=]+?)\s*,\s*(?P<noun>[^,'\"{}\[\]()=]+?)\s*,*")
_PROMPT = re.compile(
    r"(?:[-*]\s+)?(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\s*(?:\.format\((?P<values>[^()]*)\))?\s*,*"
)
_HEADING = {"subject_name", "subject name", "subject"}


@dataclass
class _File:
    """The content of `prompts_and_classes.txt`."""

    classes: dict[str, str] = field(default_factory=dict)
    templates: dict[Kind, list[str]] = field(default_factory=lambda: {"object": [], "living": []})


def read_dreambooth(folder: Path, section: str) -> list[Listed]:
    """The subjects of the data set by name. Opens no picture.

    Args:
        section: section of the configuration that names the folder, for messages.

    Raises:
        InputError: the file is missing or has no prompts, or a subject has no pictures or no class; one line each.
    """
    where = f"{section}.subjects"
    path = folder / FILE
    if not path.is_file():
        inside = sorted(each.parent for each in folder.glob(f"*/{FILE}"))
        fix = f"give {str(inside[0])!r}" if inside else "give the folder `dataset` of the DreamBooth data set"
        raise InputError(f"{where}: {str(folder)!r} has no {FILE}, which lists its classes and prompts; {fix}")
    found = _parse(path, where)
    names = {each.name: each for each in folders_of_pictures(folder)}
    problems = [
        f"{where}: {name!r} is not in the classes of {str(path)!r}; add a line {name},<class>, or remove the folder"
        for name in names
        if name not in found.classes
    ]
    listed = []
    for name, noun in sorted(found.classes.items()):
        kind = kind_of(noun)
        pictures, problem = _pictures(folder, name, names)
        if problem:
            problems.append(f"{where}: {problem}")
        elif not found.templates[kind]:
            kinds = {"living": "living subjects"}.get(kind, "objects")
            problems.append(f"{where}: {str(path)!r} has no prompts for {kinds} such as {name!r} ({noun}); add them")
        else:
            templates = tuple(found.templates[kind])
            prompts = tuple(fill(template, noun) for template in templates)
            listed.append(Listed(name, noun, kind, templates, prompts, pictures))
    refuse(problems)
    return listed


def _pictures(folder: Path, name: str, names: Mapping[str, Path]) -> tuple[tuple[Path, ...], str]:
    """A subject's pictures, or why there are none."""
    if name not in names:
        near = next((each for each in names if each.casefold() == name.casefold()), None)
        fix = f"rename {near!r}" if near else "restore it"
        return (), f"{name!r} has a class, but {str(folder)!r} has no folder of this name; {fix}"
    pictures, _ = picture_paths(folder / name)
    if pictures:
        return tuple(pictures), ""
    below = [each for each in folders_of_pictures(folder / name) if picture_paths(each)[0]]
    fix = f"move those of {str(below[0])!r} there" if below else "restore them"
    return (), f"{str(folder / name)!r} has no pictures; {fix}"


def _parse(path: Path, where: str) -> _File:
    found = _File()
    kind: Kind | None = None
    """Of the prompts that follow. None: classes follow."""
    for number, line in read_lines(where, path, "give the published text file"):
        at = f"{where}: {str(path)!r}, line {number}"
        if prompt := _PROMPT.fullmatch(line):
            found.templates[kind or "object"].append(_template(at, prompt["text"], prompt["values"]))
        elif kind is None and (row := _ROW.fullmatch(line)):
            if row["name"].casefold() in _HEADING:
                continue
            if found.classes.setdefault(row["name"], row["noun"]) != row["noun"]:
                raise InputError(f"{at} → {row['name']!r} has another class above; remove one of the two lines")
        elif re.search(r"\bprompts?\b", line, re.IGNORECASE):
            kind = "living" if re.search(r"\b(live|living|animate)\b", line, re.IGNORECASE) else "object"
        elif line.startswith(("'", '"')):
            raise InputError(f"{at} → is not a prompt in quotes, {line[:60]!r}; restore the published line")
        elif re.search(r"\bclass(es)?\b", line, re.IGNORECASE):
            kind = None
    if not found.classes:
        raise InputError(f"{where}: {str(path)!r} has no line <subject>,<class>; restore the published file")
    if not any(found.templates.values()):
        raise InputError(f"{where}: {str(path)!r} has no prompts; restore the published file")
    return found


def _template(at: str, literal: str, values: str | None) -> str:
    """The prompt of a line with `{object}` in place of the class, and without the unique token.

    Raises:
        InputError: it has no place for the class.
    """
    names = [name.strip() for name in (values or "unique_token, class_token").split(",") if name.strip()]
    text, count = "", 0
    try:
        for before, blank, _, _ in Formatter().parse(ast.literal_eval(literal)):
            text += before
            if blank is None:
                continue
            place = blank or str(count)
            count += 1
            name = names[int(place)] if place.isdecimal() else place
            text += OBJECT if re.search(r"class|object|subject", name, re.IGNORECASE) else ""
    except (ValueError, IndexError, SyntaxError):
        raise InputError(f"{at} → {literal[:60]} cannot be filled in; restore the published line") from None
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    if OBJECT not in text:
        raise InputError(f"{at} → {literal[:60]} has no place for the class; write {{1}} there")
    return text
