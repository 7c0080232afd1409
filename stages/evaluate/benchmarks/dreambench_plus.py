"""Reads the folder of DreamBench++: a picture `images/<category>/00.jpg` and its prompts `captions/<category>/00.txt`.

The first line of a text file is the class, each further line is a prompt. Categories may have folders of their own,
such as `live_subject/animal`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.benchmarks.listed import Kind, Listed, refuse
from bootpig.stages.evaluate.prompts import with_object
from bootpig.stages.picture_files.folders import natural_order, of_systems
from bootpig.stages.picture_files.reader import is_picture_name
from bootpig.stages.text_files import read_lines

_LIVING = ("animal", "human", "live", "living")


def read_dreambench_plus(folder: Path, section: str) -> list[Listed]:
    """The subjects of the benchmark by name, which is category, number and class: `live_subject_animal_00_kitten`.

    Args:
        section: section of the configuration that names the folder, for messages.

    Raises:
        InputError: a folder is missing, a picture has no captions, captions have no picture, or a text file has no
            prompts; one line each.
    """
    where = f"{section}.subjects"
    for part in ("images", "captions"):
        if not (folder / part).is_dir():
            inside = sorted(each.parent for each in folder.glob(f"*/{part}") if each.is_dir())
            fix = f"give {str(inside[0])!r}" if inside else "give the folder of DreamBench++ with images and captions"
            raise InputError(f"{where}: {str(folder)!r} has no folder {part}; {fix}")
    try:
        pictures = _files(folder / "images", is_picture_name)
        captions = _files(folder / "captions", lambda path: path.suffix.lower() == ".txt")
    except OSError as error:
        name = str(error.filename or folder)
        raise InputError(f"{where}: {name!r} cannot be read ({error.strerror}); check its permissions") from None
    if not pictures:
        raise InputError(f"{where}: {str(folder / 'images')!r} has no pictures; restore them")
    problems = [
        f"{where}: {str(paths[1])!r} has the name of {paths[0].name!r}; remove one of the two"
        for paths in pictures.values()
        if len(paths) > 1
    ]
    problems += [
        f"{where}: {str(paths[0])!r} has no text file {key}.txt in captions; restore it, or remove the picture"
        for key, paths in pictures.items()
        if key not in captions
    ]
    problems += [
        f"{where}: {str(paths[0])!r} has no picture {key} in images; restore it, or remove the text"
        for key, paths in captions.items()
        if key not in pictures
    ]
    listed: dict[str, Listed] = {}
    for key in sorted(pictures.keys() & captions.keys(), key=natural_order):
        lines = [line for _, line in read_lines(where, captions[key][0])]
        if len(lines) < 2:
            text = str(captions[key][0])
            problems.append(f"{where}: {text!r} has {len(lines)} lines; give the class, then a prompt per line")
            continue
        noun, *prompts = lines
        name = _name(key, noun)
        templates = tuple(with_object(prompt, noun) for prompt in prompts)
        listed[name] = Listed(name, noun, _kind(key), templates, tuple(prompts), (pictures[key][0],))
    refuse(problems)
    return [listed[name] for name in sorted(listed)]


def _files(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """The wanted files below a folder, by their path in it without suffix. Hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not of_systems(inside.as_posix()) and wanted(path):
            found.setdefault(inside.with_suffix("").as_posix(), []).append(path)
    return found


def _name(key: str, noun: str) -> str:
    whole = "_".join([*key.split("/"), *noun.lower().split()])
    whole = f"live_subject_{whole}" if whole.startswith(("animal_", "human_")) else whole
    return re.sub(r"[^\w.-]+", "_", whole)


def _kind(key: str) -> Kind:
    words = set(key.lower().replace("/", "_").split("_"))
    return "style" if "style" in words else "living" if words & set(_LIVING) else "object"
