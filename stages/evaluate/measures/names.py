"""The measures that `evaluate.metrics` can name: what they are called, and which way is better. Imports no model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MeasureFacts:
    """What is known of a measure without loading anything."""

    title: str
    note: str
    """What it is, in a few words."""
    feature: str
    """What it reads of each picture. Measures with the same feature share one pass over the pictures."""
    higher_is_better: bool = True
    version: int = 1
    """Must be increased when the same pictures would get other values. Stored values of other versions are not used."""


MEASURES: Mapping[str, MeasureFacts] = {
    "clip_t": MeasureFacts("CLIP-T", "similarity to the caption", "clip"),
    "clip_i": MeasureFacts("CLIP-I", "similarity to the subject's real pictures", "clip"),
    "dino": MeasureFacts("DINO", "the same, with a network that distinguishes individuals", "dino"),
    "dinov2": MeasureFacts("DINOv2", "the same, with DINOv2", "dinov2"),
    "siglip_t": MeasureFacts("SigLIP-T", "similarity to the caption, with SigLIP", "siglip"),
    "siglip_i": MeasureFacts("SigLIP-I", "similarity to the subject's real pictures, with SigLIP", "siglip"),
    "identity": MeasureFacts("identity", "similarity of the subjects alone, part by part", "identity"),
    "background": MeasureFacts("background", "similarity of what is around the subject to the scene", "background"),
    "copy_paste": MeasureFacts("copy-paste", "nearness to the reference, beyond real pictures'", "dino", False),
    "diversity": MeasureFacts("diversity", "distance between the pictures of a caption", "dino"),
}
"""In the order in which they are shown. The first three are the table of BootPIG's paper."""

DEFAULT = ("clip_t", "clip_i", "dino")

MASKED = ("identity", "background")
"""Features that need the subject's mask."""

DIRECTION = {True: "↑", False: "↓"}


def unknown_measure(name: str) -> str:
    """What is wrong with the name of a measure that does not exist, in one line."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), MEASURES, n=1)
    fix = f"did you mean {close[0]!r}?" if close else f"use some of {', '.join(MEASURES)}"
    return f"there is no metric {name!r}; {fix}"


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in the order of `MEASURES`."""
    wanted = set(names)
    return tuple(name for name in MEASURES if name in wanted)


def features_of(names: Iterable[str]) -> tuple[str, ...]:
    """The features that these measures read, in the order of `MEASURES`."""
    return tuple(dict.fromkeys(MEASURES[name].feature for name in in_order(names)))


def measured(metrics: Mapping[str, Any]) -> dict[str, MeasureFacts]:
    """The measures in the content of a `metrics.json`, in the order of `MEASURES`. One that this version does not know
    is left out."""
    found = {name for values in metrics["methods"].values() for name in values}
    return {name: facts for name, facts in MEASURES.items() if name in found}


def unscored(metrics: Mapping[str, Any], method: str, name: str) -> int:
    """How many pictures of a method have no value of a measure, according to a `metrics.json`."""
    counts = metrics.get("unscored", {}).get(name, {}).get(method, {})
    return sum(counts.values())
