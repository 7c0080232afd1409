"""Keeps the weights of a training's best point, chosen by the scores of its validation subjects."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from bootpig.stages.engine.contract import InputError
from bootpig.stages.train.state import UNUSABLE
from bootpig.storage.jsonio import parse_json

_LOG = logging.getLogger(__name__)

FIDELITY = 0.98
"""Least CLIP-T of a good point, as a fraction of the base model's without a reference."""


@dataclass(frozen=True)
class Point:
    """The scores of the validation subjects after a number of updates: means over subjects, cosines in [-1, 1]."""

    step: int
    dino: float
    clip_t: float


class Best:
    """The best point so far, with its weights on the CPU.

    Among the points whose CLIP-T is at least `FIDELITY` times that of the base model without a reference, the best one
    has the highest DINO: DINO alone would reward a model that copies its reference and ignores the caption. While no
    point has such a CLIP-T, the nearest to it is the best. Of equal points, the first is.
    """

    def __init__(self) -> None:
        self.text_only: Point | None = None
        """The base model without a reference, before the first update. None: it could not be drawn, and DINO alone
        decides."""
        self.point: Point | None = None
        self.weights: dict[str, torch.Tensor] = {}
        """By parameter name, float32."""

    @property
    def floor(self) -> float | None:
        """The least CLIP-T of a good point."""
        if self.text_only is None:
            return None
        return self.text_only.clip_t - (1 - FIDELITY) * abs(self.text_only.clip_t)

    def _rank(self, point: Point) -> tuple[float, float]:
        return (0.0 if self.floor is None else min(point.clip_t, self.floor), point.dino)

    def offer(self, point: Point, weights: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Keep a point and a copy of its weights if it is the best so far."""
        if self.point is None or self._rank(point) > self._rank(self.point):
            self.point = point
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights().items()}

    def facts(self) -> dict[str, Any]:
        """For `bootpig.json`: step and scores of the best point, and the CLIP-T of text only. Logs a warning if its
        CLIP-T is too low, or there is no point."""
        if self.point is None:
            _LOG.warning("train.keep: no point has scores, so the last weights are exported instead of the best")
            return {}
        if self.floor is not None and self.point.clip_t < self.floor:
            _LOG.warning(
                "train.keep: no point has a CLIP-T of %.2f of text only's (%.4f); the nearest, step %d with %.4f, is "
                "exported; lower train.evaluation.reference_guidance_scale, or train longer",
                FIDELITY,
                self.floor,
                self.point.step,
                self.point.clip_t,
            )
        text_only = None if self.text_only is None else self.text_only.clip_t
        return {**asdict(self.point), "text_only_clip_t": text_only, "fidelity": FIDELITY}

    def save(self, folder: Path) -> None:
        """Write it into the folder of a checkpoint."""
        points = {"text_only": self.text_only, "point": self.point}
        found = {name: None if point is None else asdict(point) for name, point in points.items()}
        (folder / "best.json").write_text(json.dumps(found, indent=2, sort_keys=True))
        safetensors.torch.save_file(self.weights, folder / "best.safetensors")

    def load(self, folder: Path) -> None:
        """Read it from the folder of a checkpoint.

        Raises:
            InputError: it cannot be read.
        """
        try:
            found = parse_json((folder / "best.json").read_text())
            points = {name: None if value is None else Point(**value) for name, value in found.items()}
            self.text_only, self.point = points["text_only"], points["point"]
            self.weights = safetensors.torch.load_file(folder / "best.safetensors")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(UNUSABLE % (folder.name, f"is not readable ({error})")) from None
