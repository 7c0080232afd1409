"""What the votes of a study say: how often the first contestant wins, with intervals, and whether judges agree.

The win rate is wins / (wins + losses); "cannot say" is counted, but is neither. Three 95 % intervals are given, because
votes are not independent: Wilson's, as if they were, and percentile bootstraps over subjects and over judges. With few
votes or one subject the widest is the honest one.

Source of the interval: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from bootpig.stages.evaluate.agreement import krippendorff_alpha
from bootpig.stages.plain_text import one_line
from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import QUESTIONS, Votes

RESAMPLES = 10_000
Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

QUESTION_NAMES = {"truer": "subject", "follows": "caption"}
"""Column of the votes → what the question is about."""


def study_results(study: Study, votes: Votes) -> dict[str, Any]:
    """The results of a study as JSON.

    Returns:
        `study` (id), `first` (name), `pairs`, `judges` and `votes` (numbers), and `results`: one entry per other
        contestant and question with `other`, `question`, `wins`, `losses`, `cannot_say`, `win_rate` in [0, 1],
        `wilson95`, `subjects95` and `judges95` ([low, high]), `alpha`. null: not defined, for want of votes, judges or
        subjects.
    """
    rows = votes.rows()
    results = []
    for other in study.names[1:]:
        about = [row for row in rows if row["other"] == other]
        results += [
            {"other": other, "question": QUESTION_NAMES[column], **_result(about, column)} for column in QUESTIONS
        ]
    judges = len({row["judge"] for row in rows})
    return {
        "study": study.id,
        "first": study.names[0],
        "pairs": len(study.pairs),
        "judges": judges,
        "votes": len(rows),
        "results": results,
    }


def _result(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    answers = [row[column] for row in rows]
    wins, losses = answers.count("first"), answers.count("other")
    by_pair: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        by_pair[row["pair"]].append(row[column])
    return {
        "wins": wins,
        "losses": losses,
        "cannot_say": answers.count("neither"),
        "win_rate": _rounded(wins / (wins + losses)) if wins + losses else None,
        "wilson95": _rounded_all(wilson(wins, wins + losses)),
        "subjects95": _rounded_all(_bootstrap([row["subject"] for row in rows], answers)),
        "judges95": _rounded_all(_bootstrap([row["judge"] for row in rows], answers)),
        "alpha": _rounded(krippendorff_alpha(by_pair.values())),
    }


def wilson(wins: int, count: int) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of a proportion `wins` of `count`. None without votes."""
    if not count:
        return None
    share, spread = wins / count, Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _bootstrap(groups: Sequence[Hashable], answers: Sequence[str]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the win rate, with whole groups drawn. None for fewer than two groups
    with a win or a loss. Always drawn with one seed: equal votes give equal intervals."""
    counts: dict[Hashable, list[int]] = defaultdict(lambda: [0, 0])
    for group, answer in zip(groups, answers, strict=True):
        if answer != "neither":
            counts[group][answer == "other"] += 1
    if len(counts) < 2:
        return None
    table = np.array(list(counts.values()), dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    wins, losses = table[:, 0][draws].sum(axis=1), table[:, 1][draws].sum(axis=1)
    low, high = np.percentile(wins / (wins + losses), [2.5, 97.5])
    return float(low), float(high)


def results_table(results: Mapping[str, Any]) -> Table:
    """The results as a table for the terminal."""
    caption = (
        f"{results['judges']} judges, {results['votes']} votes on {results['pairs']} pairs; 95 % intervals: Wilson, "
        "bootstrap over subjects, bootstrap over judges"
    )
    title = Text(f"how often {one_line(results['first'], 60)} is better", justify="left")
    table = Table(title=title, title_justify="left", caption=Text(caption), caption_justify="left")
    for name in (
        "than",
        "for the",
        "wins",
        "losses",
        "cannot say",
        "win rate",
        "Wilson",
        "subjects",
        "judges",
        "alpha",
    ):
        table.add_column(name, justify="left" if name in ("than", "for the") else "right", no_wrap=name != "than")
    for row in results["results"]:
        rate, alpha = row["win_rate"], row["alpha"]
        table.add_row(
            Text(one_line(row["other"], 60)),
            row["question"],
            *(str(row[name]) for name in ("wins", "losses", "cannot_say")),
            "–" if rate is None else f"{rate:.1%}",
            *(_shown(row[name]) for name in ("wilson95", "subjects95", "judges95")),
            "–" if alpha is None else f"{alpha:.2f}",
        )
    return table


def _shown(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.0%} – {interval[1]:.0%}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _rounded_all(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(value, 6) for value in interval]
