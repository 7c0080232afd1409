"""What a report says about scores and selection: distributions with thresholds, costs of rules, borderline pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig.stages.report.pictures import UNREADABLE, Payload, data_uri, find_samples
from bootpig.stages.select.rules import SCORES, Scored, limit_text
from bootpig.storage.jsonio import parse_json

BINS = 48

MEANINGS = {
    "caption_score": "similarity of picture and caption, CLIP",
    "object_score": "similarity of cut-out and object phrase, CLIP",
    "head_score": "output of the linear head on CLIP",
    "sharpness": "around the subject, 0 to 1",
    "outline": "edges on the mask's outline compared with those around it; about 1 for a wrong mask",
    "area": "of the subject, as a fraction of the picture",
    "center_x": "of the subject, from left (0) to right (1)",
    "center_y": "of the subject, from top (0) to bottom (1)",
    "detections": "things that are what the object phrase says",
    "view_identity": "lowest similarity of the subject in its views, DINO; samples without views have none",
    "safety": "distance to unsafe content; below 0 the safety checker would flag the picture",
    "rubric": "mean rating by the vision model",
}


@dataclass(frozen=True)
class Line:
    """A threshold in a histogram."""

    rule: str
    text: str
    at: float
    """Percent from the left."""


@dataclass(frozen=True)
class Histogram:
    """The values of one score over all scored samples."""

    name: str
    meaning: str
    low: float
    median: float
    high: float
    bars: tuple[tuple[float, bool], ...]
    """In equal bins from `low` to `high`: the height in percent of the tallest, and whether a threshold drops it."""
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class RuleCost:
    """What one rule costs."""

    name: str
    limit: str
    value: str
    """The limit of a quantile as a score. Empty if that is the limit itself."""
    dropped: int
    alone: int
    """Samples that no other rule drops."""


@dataclass(frozen=True)
class Borderline:
    """A sample near a threshold; pictures are data URIs."""

    caption: str
    value: float
    images: tuple[str, ...]
    """Its picture, and for near-duplicates that of the other one."""


@dataclass(frozen=True)
class Border:
    """The samples nearest to one threshold."""

    rule: str
    limit: str
    dropped: tuple[Borderline, ...]
    kept: tuple[Borderline, ...]


@dataclass(frozen=True)
class SelectionFacts:
    """All of it."""

    samples: int
    selected: int | None
    """None without select."""
    rules: Sequence[RuleCost] = ()
    overlaps: Sequence[tuple[str, str, int]] = ()
    """Two rules, and the samples that both drop; the most frequent first."""
    subjects: Sequence[tuple[str, int, int]] = ()
    """Subject, scored samples, selected samples."""
    histograms: Sequence[Histogram] = ()
    borders: Sequence[Border] = field(default=())


def selection_facts(payload: Payload, scored: Scored, facts: Mapping[str, Any] | None) -> SelectionFacts:
    """The facts for a page.

    Args:
        payload: of segment, whose pictures are shown.
        scored: all scored samples.
        facts: `Outcome.facts` of the selection. None: there is none.
    """
    rules = [] if facts is None else facts["rules"]
    histograms = [_histogram(name, values, rules) for name, values in scored.scores.items()]
    if facts is None:
        return SelectionFacts(len(scored), None, histograms=histograms)
    overlaps = [(*overlap["rules"], overlap["samples"]) for overlap in facts["overlaps"]]
    return SelectionFacts(
        samples=facts["samples"],
        selected=facts["selected"],
        rules=[_cost(rule) for rule in rules],
        overlaps=sorted(overlaps, key=lambda overlap: -overlap[2]),
        subjects=[(row["subject"], row["samples"], row["selected"]) for row in facts["subjects"]],
        histograms=histograms,
        borders=_borders(payload, rules),
    )


def _cost(rule: Mapping[str, Any]) -> RuleCost:
    value = f"{rule['value']:.4g}" if isinstance(rule["limit"], str) else ""
    return RuleCost(rule["rule"], limit_text(rule["limit"]), value, rule["dropped"], rule["alone"])


def _histogram(name: str, values: NDArray[np.float64], rules: Sequence[Mapping[str, Any]]) -> Histogram:
    known = values[np.isfinite(values)]
    limits = [rule for rule in rules if rule["rule"] in (f"min_{name}", f"max_{name}")]
    # a threshold beside all values is shown at the edge
    ends = [*known.tolist(), *(rule["value"] for rule in limits)]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(known, BINS, (low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    drops = np.zeros(BINS, bool)
    for rule in limits:
        drops |= middles < rule["value"] if rule["rule"].startswith("min_") else middles > rule["value"]
    return Histogram(
        name,
        MEANINGS[name],
        low,
        float(np.median(known)),
        high,
        tuple(zip((counts / counts.max() * 100).round(1).tolist(), drops.tolist(), strict=True)),
        tuple(
            Line(rule["rule"], f"{rule['value']:.4g}", round((rule["value"] - low) / (high - low) * 100, 2))
            for rule in limits
        ),
    )


def _borders(payload: Payload, rules: Sequence[Mapping[str, Any]]) -> list[Border]:
    named = [entry for rule in rules for side in ("dropped", "kept") for entry in rule["nearest"][side]]
    shown = _pictures(payload, [*named, *(entry["like"] for entry in named if "like" in entry)])

    def side(entries: Iterable[Mapping[str, Any]]) -> tuple[Borderline, ...]:
        found = []
        for entry in entries:
            keys = [entry["id"], *([entry["like"]["id"]] if "like" in entry else [])]
            if all(key in shown for key in keys):
                found.append(Borderline(shown[keys[0]][0], entry["value"], tuple(shown[key][1] for key in keys)))
        return tuple(found)

    return [
        Border(rule["rule"], limit_text(rule["limit"]), side(rule["nearest"]["dropped"]), side(rule["nearest"]["kept"]))
        for rule in rules
        if rule["nearest"]["dropped"] or rule["nearest"]["kept"]
    ]


def _pictures(payload: Payload, entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Sample → (caption, data URI), each unit read once. Samples of a damaged unit are left out."""
    by_unit: dict[int, set[str]] = {}
    for entry in entries:
        by_unit.setdefault(entry["unit"], set()).add(entry["id"])
    shown = {}
    for unit, keys in sorted(by_unit.items()):
        try:
            for key, members in find_samples(payload("segment", unit), keys).items():
                shown[key] = str(parse_json(members["json"])["caption"]), data_uri(members["png"])
        except UNREADABLE:
            continue
    return shown


assert set(MEANINGS) == set(SCORES)
