"""What a stage is expected to cost, before anything is measured: the work, the samples, the estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bootpig.stages.engine.memory import UNKNOWN, Memory


@dataclass(frozen=True)
class SampleShape:
    """Expected properties of a stage's samples that determine the cost of later stages."""

    pixels: float = 0.0
    """Height times width of a picture, on average. 0 if there is none yet."""
    square: bool = True
    """Whether all pictures are square."""
    references: int = 1
    """References per sample."""
    base: str = ""
    """The base model that encodes the pictures or is trained on them, as named in the config."""


@dataclass(frozen=True)
class Workload:
    """The work that is left for a stage."""

    units: int
    """Units of a map stage. For a reduce stage 1, or 0 if the result exists."""
    samples: int
    """Samples in all these units. For a reduce stage, the number of results."""
    above: SampleShape
    """The samples of the first upstream."""


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a `Workload`, before anything is measured. `plan` adds the estimates of all stages."""

    shape: SampleShape
    """The samples that the stage makes."""
    tflop: float = 0.0
    """Operations in 10^12."""
    stored_bytes: float = 0.0
    """Bytes added to the store."""
    usd: float = 0.0
    """Charges of external services, without the price of a GPU."""
    memory: Memory = UNKNOWN
    """Peak memory on one device."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """More figures for `plan --json`, by name."""
    assumptions: tuple[str, ...] = ()
    """Assumptions behind the figures, one line each. Several stages may have the same."""
