"""Lets a vision model judge the pictures of an evaluation, and writes what it says: `judge.parquet`, and metrics."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.engine.contract import InputError, Progress
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import NOT_FINITE, PictureFiles
from bootpig.stages.evaluate.metrics import summary
from bootpig.stages.evaluate.ratings import FIELD, Rated, agreement, check_ratings, read_ratings
from bootpig.stages.evaluate.results import JUDGED
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.evaluate.vision_judge import Question, Score, ask
from bootpig.stages.evaluate.vision_judge_config import QUESTIONS, JudgeConfig
from bootpig.storage.parts import Parts

_LOG = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("method", "subject", "prompt")),
        ("number", pa.int32()),
        ("file", pa.string()),
        *(field for q in QUESTIONS for field in ((q, pa.int8()), (f"{q}_reason", pa.string()))),
    ]
)
"""Of `judge.parquet`: one row per method and picture. A score is null if there is none, and then has a reason."""


def judge_pictures(
    config: JudgeConfig,
    rows: Sequence[Drawing],
    pictures: Mapping[str, PictureFiles],
    not_finite: Mapping[str, Set[int]],
    references: Mapping[str, PictureFiles],
    parts: Parts,
    workdir: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Ask the judge about every picture and write `judge.parquet` to `workdir`.

    Args:
        rows: what was drawn.
        pictures: method → one picture per row.
        not_finite: method → rows without a picture.
        references: the prepared references by name of the subject. The judge sees the first.
        parts: a folder of evaluate in the store in which answers are kept.
        seed: of the bootstrap.
        progress: called with the number of answers about one method.

    Returns:
        The part `judge` of `metrics.json`: `model`, `prompts`, `methods` (method → question → mean score from 0 to 4
        over subjects, and `ci95`; null if a subject has no score), `missing` (code → number of scores, if any) and
        `agreement` if there are ratings.

    Raises:
        FatalError, InputError: as in `ask`.
    """
    numbers = _numbers(rows)
    table: list[dict[str, Any]] = []
    for method, files in pictures.items():
        lost = not_finite.get(method, frozenset())
        asked: dict[tuple[int, str], Question] = {}
        for place, row in enumerate(rows):
            if place in lost:
                continue
            reference = references[row.subject.name].paths[0]
            asked[place, "concept"] = Question("concept", files.paths[place], row.subject.object, reference)
            asked[place, "following"] = Question("following", files.paths[place], row.prompt)
        scores = ask(config, asked.values(), parts, method, progress) if asked else {}
        for place, row in enumerate(rows):
            said = {q: Score(None, NOT_FINITE) if place in lost else scores[asked[place, q]] for q in QUESTIONS}
            table.append(
                {
                    "method": method,
                    "subject": row.subject.name,
                    "prompt": row.prompt,
                    "number": numbers[place],
                    "file": f"images/{method}/{row.file}",
                    **{q: score.score for q, score in said.items()},
                    **{f"{q}_reason": score.reason for q, score in said.items()},
                }
            )
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), workdir / JUDGED, compression="zstd")
    missing = Counter(row[f"{q}_reason"] for row in table for q in QUESTIONS if row[q] is None)
    found: dict[str, Any] = {
        "model": config.model,
        "prompts": config.prompts,
        "methods": {method: _means([r for r in table if r["method"] == method], seed) for method in pictures},
        **({"missing": dict(sorted(missing.items()))} if missing else {}),
    }
    if config.ratings is not None:
        found["agreement"] = _compared(config.ratings, table)
    return found


def check_judge(config: JudgeConfig, subjects: Sequence[Subject], images_per_prompt: int) -> None:
    """Check what a judge needs, before anything is drawn.

    Raises:
        InputError: the API key is missing, or the ratings cannot be used.
    """
    config.check_key()
    if config.ratings is not None:
        shown: Counter[tuple[str, str]] = Counter()
        for subject in subjects:
            for prompt in subject.prompts:
                shown[subject.name, prompt] += images_per_prompt
        check_ratings(config.ratings, {(*key, number) for key, count in shown.items() for number in range(count)})


def _numbers(rows: Sequence[Drawing]) -> list[int]:
    """The number of each picture among those of its subject and caption."""
    seen: Counter[tuple[str, str]] = Counter()
    numbers = []
    for row in rows:
        key = row.subject.name, row.prompt
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def _means(table: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Question → mean over subjects with its interval."""
    found: dict[str, Any] = {}
    for question in QUESTIONS:
        by_subject: dict[str, list[int]] = {}
        for row in table:
            values = by_subject.setdefault(row["subject"], [])
            if row[question] is not None:
                values.append(row[question])
        whole = all(by_subject.values())
        found[question] = summary([sum(v) / len(v) for v in by_subject.values()], seed) if whole else None
    return found


def _compared(path: str, table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratings = read_ratings(path)
    drawn = {Rated(row["method"], row["subject"], row["prompt"], row["number"]): row for row in table}
    if unknown := len(ratings.pictures - drawn.keys()):
        _LOG.warning("%s: %d of %d rated pictures are not of this evaluation", FIELD, unknown, len(ratings.pictures))
        if unknown == len(ratings.pictures):
            raise InputError(f"{FIELD}: {path!r} → rates no picture of this evaluation; its methods are others")
    scores = {q: {rated: row[q] for rated, row in drawn.items() if row[q] is not None} for q in QUESTIONS}
    return agreement(ratings, scores)
