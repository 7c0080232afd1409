"""Measures on held-out samples whether a model in training uses its references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bootpig.stages.engine.contract import sample_seed
from bootpig.stages.train.dataset import EncodedSample, same_shapes
from bootpig.stages.train.objective import Inputs, Objective

MEASURED = 64
"""Measurements at a time: (sample, timestep, noise) triples, the same ones each time."""

_FORWARD_SHARE = 0.6
"""Cost of one measurement, with the reference and without, in units of a training sample (METHOD.md's operation counts:
1.6 + 0.8 TFLOP, against 4.2)."""

_USUAL_SHARE = 0.02
"""Share of the training that validation takes if the configuration does not say how often."""


@dataclass(frozen=True)
class Reading:
    """The losses of one validation, means over its measurements."""

    loss: float
    """With the reference."""
    loss_without: float
    """Without the reference."""
    gain: float
    """`loss_without` - `loss`: how much the reference helps. Near zero: the model ignores it."""
    low: float
    """Lower end of the 95 % interval of `gain`."""
    high: float

    def values(self) -> dict[str, float]:
        """For the log."""
        return {
            "validation_loss": self.loss,
            "validation_loss_without_reference": self.loss_without,
            "reference_gain": self.gain,
            "reference_gain_low": self.low,
            "reference_gain_high": self.high,
        }


def usual_interval(batch_size: int) -> int:
    """Updates between two validations that together take `_USUAL_SHARE` of the training."""
    return math.ceil(MEASURED * _FORWARD_SHARE / (_USUAL_SHARE * batch_size))


class Validation:
    """The loss on held-out samples at fixed timesteps and noise, with the reference and without.

    The timesteps are spread evenly over the schedule. If there are fewer samples than measurements, each is measured at
    several timesteps. The state of training does not change.
    """

    def __init__(
        self, objective: Objective, samples: Sequence[EncodedSample], *, timesteps: int, seed: int, clean: bool
    ) -> None:
        """
        Args:
            objective: the objective in training, not wrapped for several processes.
            samples: the held-out samples, at least one.
            timesteps: number of timesteps of the noise schedule.
            seed: the seed of the train stage.
            clean: references are read without noise.
        """
        self.objective = objective
        chosen = [samples[index % len(samples)] for index in range(MEASURED)]
        times = ((torch.arange(MEASURED) + 0.5) / MEASURED * timesteps).long()
        self.inputs = [_inputs(chosen, places, times, seed, clean) for places in same_shapes(chosen)]
        """The measurements, those of one picture size together."""

    @torch.no_grad()
    def __call__(self, size: int, device: torch.device) -> Reading:
        """Measure with the current weights, `size` samples at once."""
        mode = self.objective.training
        self.objective.eval()
        try:
            seen, unseen = (self._losses(size, device, use_reference) for use_reference in (True, False))
        finally:
            self.objective.train(mode)
        gains = unseen - seen
        gain, spread = float(gains.mean()), 1.96 * float(gains.std()) / math.sqrt(len(gains))
        return Reading(float(seen.mean()), float(unseen.mean()), gain, gain - spread, gain + spread)

    def _losses(self, size: int, device: torch.device, use_reference: bool) -> torch.Tensor:
        """The loss of each measurement, float64 on the CPU."""
        found = []
        for part in (part for inputs in self.inputs for part in inputs.parts(size)):
            arguments = {**part.on(device), "use_reference": (use_reference,) * len(part.use_reference)}
            found.append(self.objective.losses(**arguments).double().cpu())
        return torch.cat(found)


def _inputs(
    chosen: Sequence[EncodedSample], places: Sequence[int], times: torch.Tensor, seed: int, clean: bool
) -> Inputs:
    """The measurements `places`, whose samples have latents of one shape. `times` are the timesteps of all."""
    samples = [chosen[place] for place in places]
    tensors = {
        name: torch.stack([sample.tensors[name] for sample in samples])
        for name in samples[0].tensors
        if name != "references"
    }
    reference = torch.stack([sample.tensors["references"][0] for sample in samples])
    noise = torch.empty(2, *tensors["target"].shape)
    other = torch.empty(reference.shape)
    for row, place in enumerate(places):
        number = sample_seed(seed, "train.validation", f"{chosen[place].id}/{place}")
        generator = torch.Generator().manual_seed(number)
        torch.randn(noise[:, row].shape, generator=generator, out=noise[:, row])
        torch.randn(other[row].shape, generator=generator, out=other[row])
    reference_noise = noise[1] if noise[1].shape == other.shape else other
    return Inputs(
        reference=reference,
        noise=noise[0],
        reference_noise=None if clean else reference_noise,
        timesteps=times[list(places)],
        use_reference=(True,) * len(places),
        **tensors,
    )
