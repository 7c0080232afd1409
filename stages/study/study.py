"""The folder of a study: its pairs and pictures, copied once, so that it needs neither the runs nor their store.

study.json      the contestants, the pairs, and secrets of the server; nothing of it reaches a judge
pictures/       the pictures of all pairs, as judges see them
votes.jsonl     every vote, as it was given; see `votes`
votes.parquet   the votes that count, as a table
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bootpig.stages.engine.contract import InputError, Progress
from bootpig.stages.pictures import encode_png
from bootpig.stages.study.evaluations import Contestant
from bootpig.stages.study.pairs import Pair, alike, pair_files
from bootpig.storage.errors import NO_SPACE
from bootpig.storage.fingerprint import digest

STUDY = "study.json"


class StudyPair(BaseModel):
    """A pair as it is stored. Files are relative to the study's folder."""

    model_config = ConfigDict(frozen=True)

    other: int
    subject: str
    prompt: str
    number: int
    first_file: str
    other_file: str
    references: tuple[str, ...]


class Study(BaseModel):
    """The content of `study.json`."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Digest of the contestants and pairs."""
    names: tuple[str, ...]
    """How the contestants are called in results."""
    pairs: tuple[StudyPair, ...]
    key: str
    """Part of the judges' link. Without it, the server shows nothing."""
    secret: str
    """What the orders and the names of pictures are made from."""


def study_id(found: Sequence[Contestant], pairs: Sequence[Pair]) -> str:
    """What makes two studies the same: their contestants and their pairs, 16 hex digits."""
    facts = [[one.evaluation.digest, one.method] for one in found]
    return digest({"contestants": facts, "pairs": [[pair.other, *pair.shown] for pair in pairs]})[:16]


def contestant_names(found: Sequence[Contestant]) -> tuple[str, ...]:
    """Names that differ: by method, by run, or by both."""
    if len({id(one.evaluation) for one in found}) == 1:
        return tuple(one.method for one in found)
    if len({one.method for one in found}) == 1 and len({one.evaluation.label for one in found}) == len(found):
        return tuple(one.evaluation.label for one in found)
    return tuple(f"{one.evaluation.label} {one.method}" for one in found)


def make_study(folder: Path, found: Sequence[Contestant], pairs: Sequence[Pair], progress: Progress) -> Study:
    """Write a new study. Its folder takes its name when it is whole.

    Raises:
        InputError: a picture cannot be read, or the folder cannot be written.
    """
    files = pair_files(found, pairs)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise not_written(folder, error) from None
    try:
        (scratch / "pictures").mkdir()
        references: dict[str, tuple[str, ...]] = {}
        kept = []
        for number, (pair, paths) in enumerate(zip(pairs, files, strict=True)):
            if (subject := pair.shown.subject) not in references:
                names = [f"pictures/reference-{len(references):04d}-{n}.png" for n in range(len(paths.references))]
                for name, picture in zip(names, alike(paths.references), strict=True):
                    (scratch / name).write_bytes(encode_png(picture))
                references[subject] = tuple(names)
            first, other = f"pictures/{number:05d}-first.png", f"pictures/{number:05d}-other.png"
            for name, picture in zip((first, other), alike([paths.first, paths.other]), strict=True):
                (scratch / name).write_bytes(encode_png(picture))
            shown = {"other": pair.other, **pair.shown._asdict()}
            kept.append(StudyPair(**shown, first_file=first, other_file=other, references=references[subject]))
            progress(number + 1, len(pairs), "pictures")
        study = Study(
            id=study_id(found, pairs),
            names=contestant_names(found),
            pairs=tuple(kept),
            key=secrets.token_hex(16),
            secret=secrets.token_hex(32),
        )
        # the server's secrets are for its user alone, as is the whole folder: mkdtemp makes it so
        (scratch / STUDY).write_text(json.dumps(study.model_dump(), ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(scratch, folder)
    except OSError as error:
        raise not_written(folder, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return study


def read_study(folder: Path) -> Study | None:
    """The study in a folder. None if the folder does not exist or is empty.

    Raises:
        InputError: something else is there, or its `study.json` is damaged.
    """
    try:
        text = (folder / STUDY).read_text(encoding="utf-8")
    except FileNotFoundError:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        raise InputError(f"--out: {str(folder)!r} → holds no study; give a new folder, or that of a study") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"--out: {str(folder / STUDY)!r} → cannot be read ({reason}); give another folder") from None
    try:
        study = Study.model_validate_json(text)
    except ValidationError:
        problem = "is damaged; restore it from a copy, or give a new folder"
        raise InputError(f"--out: {str(folder / STUDY)!r} → {problem}") from None
    files = [name for pair in study.pairs for name in (pair.first_file, pair.other_file, *pair.references)]
    inside = (folder / "pictures").resolve()
    if any((folder / name).resolve().parent != inside for name in files):
        raise InputError(f"--out: {str(folder / STUDY)!r} → names files outside of its folder; give another folder")
    if not all(0 < pair.other < len(study.names) for pair in study.pairs):
        raise InputError(f"--out: {str(folder / STUDY)!r} → names contestants that it does not have; give a new folder")
    return study


def not_written(folder: Path, error: OSError) -> InputError:
    """What to tell a user whose folder cannot be written."""
    fix = "free some space" if error.errno in NO_SPACE else "give another folder"
    return InputError(f"--out: {str(folder)!r} → cannot be written ({error.strerror or error}); {fix}")
