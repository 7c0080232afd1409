"""The score distributions of two runs beside each other, for `bootpig runs diff`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from bootpig.flows.runs.records import RunRecord, read_config
from bootpig.stages.select.config import SelectConfig
from bootpig.stages.select.rules import Flags, Scored, limit_text, thresholds
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root


def compare_scores(root: Root, a: RunRecord, b: RunRecord) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Score → `a` and `b` → its distribution over the scored samples of that run, None where the run lacks the score.

    A distribution has: `samples` with this score, `missing` ones without; `lower_quartile`, `median` and
    `upper_quartile`; `limits`, those of the run's own selection; `passing`, the fraction of all scored samples that
    passes them, null without limits.
    """
    left, right = (_distributions(root, record) for record in (a, b))
    return {name: {"a": left.get(name), "b": right.get(name)} for name in dict.fromkeys([*left, *right])}


def scores_table(scores: Mapping[str, Mapping[str, Mapping[str, Any] | None]], names: Sequence[str]) -> Table:
    """What `compare_scores` returns, for the terminal: two lines for each score. `names`: how the runs were named."""
    table = Table(
        "score", "run", "samples", "missing", "lower quartile", "median", "upper quartile", "limits", "passing"
    )
    for score, sides in scores.items():
        for run, facts in zip(names, (sides["a"], sides["b"]), strict=True):
            if facts is None:
                table.add_row(score, escape(run), *["–"] * 7)
                continue
            spread = (f"{facts[name]:.4g}" for name in ("lower_quartile", "median", "upper_quartile"))
            limits = ", ".join(f"{name} {limit_text(limit)}" for name, limit in facts["limits"].items())
            passing = "" if facts["passing"] is None else f"{facts['passing']:.1%}"
            table.add_row(score, escape(run), str(facts["samples"]), str(facts["missing"]), *spread, limits, passing)
        table.add_section()
    return table


def _distributions(root: Root, record: RunRecord) -> dict[str, dict[str, Any]]:
    stage = record.stages.get("score")
    if stage is None:
        return {}
    markers = Parts(root, "score", stage.fingerprint).listing(record.units).markers
    scored = Scored.of_rows(row for unit in sorted(markers) for row in markers[unit].rows)
    select = read_config(root, record).select or SelectConfig()
    return {name: _distribution(scored, name, select) for name in scored.scores}


def _distribution(scored: Scored, score: str, select: SelectConfig) -> dict[str, Any]:
    values = scored.scores[score]
    known = values[np.isfinite(values)]
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
    limits = {name: limit for name, limit in select.limits().items() if name.partition("_")[2] == score}
    passes: Flags = np.ones(len(scored), np.bool_)
    for rule in thresholds(scored, limits):
        passes &= ~rule.dropped
    return {
        "samples": len(known),
        "missing": len(scored) - len(known),
        "lower_quartile": low,
        "median": middle,
        "upper_quartile": high,
        "limits": limits,
        "passing": float(passes.mean()) if limits else None,
    }
