"""Applies the rules of a selection to scored samples, and says what each of them keeps and drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig.stages.caption.phrases import head_noun
from bootpig.stages.engine.contract import InputError, sample_seed
from bootpig.stages.select.config import SelectConfig, quantile
from bootpig.stages.select.duplicates import Nearest

SCORES = (
    "caption_score",
    "object_score",
    "head_score",
    "sharpness",
    "outline",
    "area",
    "center_x",
    "center_y",
    "detections",
    "view_identity",
    "safety",
    "rubric",
)
"""The columns of score that a threshold can be set for."""

PASSES_WITHOUT = frozenset({"view_identity"})
"""Scores that a sample may lack, as one without views does: it passes their limits. Without any other score it does
not."""

NEAREST = 6
"""Samples on each side of a threshold that are named, the nearest ones."""

Flags = NDArray[np.bool_]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The samples that score made, in the order of the data set."""

    ids: Sequence[str]
    units: Sequence[int]
    objects: Sequence[str]
    scores: Mapping[str, Values]
    """Column → one value per sample, NaN where it has none, or one that is not finite. Columns without any value are
    left out."""

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Scored:
        """From the rows of score's units, of any status."""
        ok = [row for row in rows if row["status"] == "ok"]
        # None becomes NaN; parts without any value of an optional column lack it
        columns = {name: np.array([row.get(name) for row in ok], np.float64) for name in SCORES}
        for values in columns.values():
            values[np.isinf(values)] = np.nan
        return cls(
            [row["id"] for row in ok],
            [row["unit"] for row in ok],
            [row["object"] for row in ok],
            {name: values for name, values in columns.items() if not np.isnan(values).all()},
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Rule:
    """What one setting of select does."""

    name: str
    """The setting."""
    limit: float | str
    """Its value."""
    dropped: Flags
    """(samples,). A threshold is applied to all samples, any other rule to those that the rules before it keep."""
    value: float
    """The limit as a number: that of a quantile depends on the samples."""
    values: Values | None = None
    """(samples,): what is compared with the limit, NaN where nothing is. None for a rule about numbers of samples."""
    partners: NDArray[np.int64] | None = None
    """(samples,): the place of the sample that it is compared with, or -1. Only for near-duplicates."""


@dataclass(frozen=True)
class Outcome:
    """A selection."""

    scored: Scored
    rules: Sequence[Rule]
    kept: Flags

    @property
    def ids(self) -> list[str]:
        """The selected samples, in the order of the data set."""
        return [self.scored.ids[i] for i in np.flatnonzero(self.kept).tolist()]

    def facts(self) -> dict[str, Any]:
        """What each rule keeps and drops, overlaps, subjects before and after; for JSON.

        `alone` counts the samples that no other rule drops, `nearest` names those nearest to the limit on both sides.
        """
        hits = np.sum([rule.dropped for rule in self.rules], axis=0) if self.rules else np.zeros(len(self.scored))
        nouns = [head_noun(phrase) for phrase in self.scored.objects]
        before, after = Counter(nouns), Counter(noun for noun, kept in zip(nouns, self.kept, strict=True) if kept)
        return {
            "samples": len(self.scored),
            "selected": int(self.kept.sum()),
            "rules": [
                {
                    "rule": rule.name,
                    "limit": rule.limit,
                    "value": rule.value,
                    "dropped": int(rule.dropped.sum()),
                    "alone": int((rule.dropped & (hits == 1)).sum()),
                    "nearest": self._nearest(rule),
                }
                for rule in self.rules
            ],
            "overlaps": [
                {"rules": [a.name, b.name], "samples": both}
                for i, a in enumerate(self.rules)
                for b in self.rules[i + 1 :]
                if (both := int((a.dropped & b.dropped).sum()))
            ],
            "subjects": [
                {"subject": noun, "samples": count, "selected": after[noun]}
                for noun, count in sorted(before.items(), key=lambda pair: (-pair[1], pair[0]))
            ],
        }

    def _nearest(self, rule: Rule) -> dict[str, list[dict[str, Any]]]:
        """The samples nearest to a rule's limit, those that it drops and those that it keeps, nearest first."""
        if rule.values is None:
            return {"dropped": [], "kept": []}
        compared = np.isfinite(rule.values)
        return {
            side: [self._named(rule, place) for place in _closest(rule.values, rule.value, chosen & compared)]
            for side, chosen in (("dropped", rule.dropped), ("kept", ~rule.dropped))
        }

    def _named(self, rule: Rule, place: int) -> dict[str, Any]:
        assert rule.values is not None
        named = {"id": self.scored.ids[place], "unit": self.scored.units[place], "value": float(rule.values[place])}
        if rule.partners is not None:
            partner = int(rule.partners[place])
            named["like"] = {"id": self.scored.ids[partner], "unit": self.scored.units[partner]}
        return named


def nothing_left(facts: Mapping[str, Any]) -> str | None:
    """Why a selection leaves no sample, and what to change, in one line. None if it leaves some.

    Args:
        facts: as of `Outcome.facts`.
    """
    if facts["selected"]:
        return None
    if not facts["samples"]:
        return "there is no scored sample to select from; see bootpig status for what rejected them"
    most = sorted(facts["rules"], key=lambda rule: -rule["dropped"])[:3]
    drops = ", ".join(f"{rule['rule']} {limit_text(rule['limit'])} drops {rule['dropped']}" for rule in most)
    return f"no sample is left of {facts['samples']} ({drops}); loosen these settings of select"


def choose(scored: Scored, config: SelectConfig, seed: int, compare: Callable[[Flags], Nearest]) -> Outcome:
    """Apply the rules: thresholds, then near-duplicates, samples per object, and the cap.

    The last two keep the samples with the lowest random numbers, which depend only on the seed and a sample's id. So
    the selection favours no part of the data set, and changes little when the data set grows.

    Args:
        seed: the run's seed.
        compare: compares the samples that are still kept with each other. Called only with `max_similarity`.

    Raises:
        InputError: a threshold is for a score that no sample has.
    """
    rules = thresholds(scored, config.limits())
    kept = np.ones(len(scored), np.bool_)
    for rule in rules:
        kept &= ~rule.dropped
    if config.max_similarity is not None:
        rules.append(_similarity(kept, config.max_similarity, compare(kept)))
        kept &= ~rules[-1].dropped
    for name, most in (("max_per_object", config.max_per_object), ("max_samples", config.max_samples)):
        if most is not None:
            groups = scored.objects if name == "max_per_object" else [""] * len(scored)
            rules.append(Rule(name, most, _surplus(scored.ids, groups, kept, seed, most), most))
            kept &= ~rules[-1].dropped
    return Outcome(scored, rules, kept)


def thresholds(scored: Scored, limits: Mapping[str, float | str]) -> list[Rule]:
    """The rules of some limits, as of `SelectConfig.limits`. None without any sample.

    Raises:
        InputError: a limit is for a score that no sample has.
    """
    return [_threshold(scored, name, limit) for name, limit in limits.items()] if len(scored) else []


def _threshold(scored: Scored, name: str, limit: float | str) -> Rule:
    side, _, score = name.partition("_")
    values = scored.scores.get(score)
    if values is None:
        raise InputError(f"select.{name}: {limit_text(limit)} → no sample has {score}; remove it, or score again")
    share = quantile(limit)
    # scores are stored as float32: a limit that is written like one of them must keep it
    value = float(np.float32(limit if share is None else np.nanquantile(values, share)))
    passes = values >= value if side == "min" else values <= value
    if score in PASSES_WITHOUT:
        passes |= np.isnan(values)
    return Rule(name, limit, ~passes, value, values)


def _similarity(kept: Flags, limit: float, found: Nearest) -> Rule:
    """Args: found: for the kept samples alone."""
    places = np.flatnonzero(kept)
    values, partners = np.full(len(kept), np.nan), np.full(len(kept), -1, np.int64)
    values[places] = np.where(found.partners >= 0, found.cosines, np.nan)
    partners[places] = np.where(found.partners >= 0, places[found.partners], -1)
    return Rule("max_similarity", limit, values > limit, limit, values, partners)


def _surplus(ids: Sequence[str], groups: Sequence[str], kept: Flags, seed: int, most: int) -> Flags:
    """The kept samples beyond the first `most` of their group, in random order."""
    places = sorted(np.flatnonzero(kept).tolist(), key=lambda place: sample_seed(seed, "select", ids[place]))
    seen: Counter[str] = Counter()
    dropped = np.zeros(len(ids), np.bool_)
    for place in places:
        group = groups[place].casefold()
        seen[group] += 1
        dropped[place] = seen[group] > most
    return dropped


def _closest(values: Values, limit: float, chosen: Flags) -> list[int]:
    places = np.flatnonzero(chosen)
    order = np.argsort(np.abs(values[places] - limit), kind="stable")[:NEAREST]
    return [int(place) for place in places[order]]


def limit_text(limit: float | str) -> str:
    """A limit as it is written in a configuration."""
    return limit if isinstance(limit, str) else f"{limit:g}"
