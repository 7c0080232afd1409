"""Reads the log of a training from the store: its newest values and its curves. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bootpig.stages.engine.live import live_path
from bootpig.stages.engine.survey import StageSurvey
from bootpig.storage.errors import StoreError
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

NEWEST_BYTES = 2**16
"""Of the end of a log, for its newest values: hundreds of lines."""


@dataclass(frozen=True)
class Chart:
    """How a value of the log is shown."""

    title: str
    note: str = ""
    """One sentence."""


CHARTS: dict[str, Chart] = {
    "loss": Chart("Training loss", "Mean squared error."),
    "validation_loss": Chart("Validation loss", "The loss on held-out samples."),
    "reference_gain": Chart(
        "Reference gain",
        "How much the reference lowers the loss on held-out samples. Near zero, the model ignores its references.",
    ),
    "validation_dino": Chart("DINO of the validation subjects", "Their likeness in pictures drawn during training."),
    "validation_clip_t": Chart("CLIP-T of the validation subjects", "How well those pictures follow their captions."),
    "grad_norm_reference": Chart("Gradient norm, Reference UNet", "Before clipping, of updates with a reference."),
    "grad_norm_base": Chart("Gradient norm, base UNet", "Before clipping."),
    "learning_rate_reference": Chart("Learning rate, Reference UNet"),
    "learning_rate_base": Chart("Learning rate, base UNet"),
    "samples_per_second": Chart("Samples per second", "Over all devices."),
    "mfu": Chart("MFU", "Share of the devices' peak operations per second that the training uses."),
}
"""Value of a log line → its chart, in the order of the report."""


def read_log(root: Root, survey: StageSurvey, limit: int | None = None) -> list[dict[str, float]]:
    """The lines of the log of a training, in order: that of its result, otherwise the copy of a running or failed one.

    Values that are not finite numbers are left out, lines without a step too. Empty if there is no log, or if the store
    fails.

    Args:
        root: the store.
        survey: the state of train.
        limit: read only so many bytes of the end.
    """
    if not survey.path:
        return []
    path = live_path(survey.path) if survey.result is None else f"{survey.result.path}/log.jsonl"
    try:
        data = root.read(path) if limit is None else root.read_end(path, limit)
    except (StoreError, OSError):
        return []
    lines = (_line(text) for text in data.splitlines())
    return [line for line in lines if "step" in line]


def _line(text: bytes) -> dict[str, float]:
    """The finite numbers of a log line. Empty if it cannot be read, as the first one where a file is cut."""
    try:
        values = parse_json(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if type(value) in (int, float) and abs(value) < 1e300}


def newest(lines: Iterable[dict[str, float]]) -> dict[str, float]:
    """The newest value of each name. Not every line has all of them."""
    found: dict[str, float] = {}
    for line in lines:
        found |= line
    return found


def curves(lines: Sequence[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each value in `CHARTS` that the lines have."""
    found = {name: [(int(line["step"]), line[name]) for line in lines if name in line] for name in CHARTS}
    return {name: points for name, points in found.items() if points}
