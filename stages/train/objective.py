"""Computes one training step: the random draws for a batch, and the BootPIG loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from diffusers.training_utils import compute_snr
from torch import nn
from torch.nn.functional import mse_loss

from bootpig.stages.engine.contract import sample_seed
from bootpig.stages.train.dataset import Batch


@dataclass(frozen=True)
class Inputs:
    """A batch with its random draws. Tensors are float32 or float16 until `on` is called."""

    target: torch.Tensor
    """(B, C, h, w) latents."""
    reference: torch.Tensor
    """(B, C, h, w) latents, or (B, n, C, h, w) with several references per sample."""
    noise: torch.Tensor
    """(B, C, h, w), noise for the target."""
    timesteps: torch.Tensor
    """(B,) int64, of the target."""
    prompt_embeds: torch.Tensor
    """(B, S, D); those of the empty prompt if the caption is dropped."""
    reference_prompt_embeds: torch.Tensor
    """(B, S, D), never dropped."""
    use_reference: tuple[bool, ...]
    """B booleans, kept on the host so that no step waits for the device."""
    reference_noise: torch.Tensor | None = None
    """Of the shape of `reference`, independent of `noise`. None: the reference is read without noise, at timestep 0."""
    pooled_prompt_embeds: torch.Tensor | None = None
    """(B, P), dropped with the caption; SDXL only."""
    pooled_reference_prompt_embeds: torch.Tensor | None = None
    """(B, P); SDXL only."""

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "use_reference"}
        return {name: value for name, value in values.items() if value is not None}

    def pinned(self) -> Inputs:
        """The same in page-locked memory, so that copying to a GPU overlaps with computation."""
        return Inputs(**{name: t.pin_memory() for name, t in self._tensors().items()}, use_reference=self.use_reference)

    def parts(self, size: int) -> Iterator[Inputs]:
        """Split into slices of `size` samples."""
        for begin in range(0, len(self.use_reference), size):
            part = slice(begin, begin + size)
            tensors = {name: t[part] for name, t in self._tensors().items()}
            yield Inputs(**tensors, use_reference=self.use_reference[part])

    def on(self, device: torch.device) -> dict[str, Any]:
        """The arguments for `Objective.forward`, on `device`, with floats as float32."""
        arguments: dict[str, Any] = {}
        for name, tensor in self._tensors().items():
            moved = tensor.to(device, non_blocking=True)
            arguments[name] = moved.float() if moved.is_floating_point() else moved
        return {**arguments, "use_reference": self.use_reference}


class Draws:
    """Draws noise, timesteps and dropout for a batch.

    Draws for a sample depend only on its own seed, draws for a whole step on (train seed, step). Number of ranks,
    batch size per device and resuming do not change them.
    """

    def __init__(
        self,
        *,
        seed: int,
        timesteps: int,
        empty_prompt: torch.Tensor,
        drop_caption: float,
        drop_reference: float,
        drop_reference_per: Literal["sample", "step"],
        empty_pooled: torch.Tensor | None = None,
        clean_references: bool = False,
        distribution: Literal["uniform", "logit_normal"] = "uniform",
    ) -> None:
        """
        Args:
            seed: the seed of the train stage.
            timesteps: number of timesteps T of the noise schedule.
            empty_prompt, empty_pooled: (S, D) and, for SDXL, (P): embeds that replace a dropped caption.
            drop_caption, drop_reference: probabilities.
            drop_reference_per: drop the reference per sample or for the whole step.
            clean_references: draw no noise for references. The other draws stay the same.
            distribution: of a sample's timestep: uniform over 0 … T - 1, or ⌊T · sigmoid(n)⌋ with n standard normal
                (Stable Diffusion 3, section 3.1).
        """
        self.seed = seed
        self.timesteps = timesteps
        self.empty_prompt = empty_prompt
        self.empty_pooled = empty_pooled
        self.drop_caption = drop_caption
        self.drop_reference = drop_reference
        self.per_step = drop_reference_per == "step"
        self.clean_references = clean_references
        self.uniform = distribution == "uniform"

    def __call__(self, step: int, batch: Batch) -> Inputs:
        target = batch.tensors["target"]
        noise = torch.empty(target.shape)
        reference = batch.tensors["reference"]
        reference_noise = None if self.clean_references else torch.empty(reference.shape)
        timesteps = torch.empty(len(batch.ids), dtype=torch.long)
        chances = torch.empty(len(batch.ids), 2)
        for row, seed in enumerate(batch.seeds):
            generator = torch.Generator().manual_seed(seed)
            if self.uniform:
                torch.randint(self.timesteps, (1,), generator=generator, out=timesteps[row : row + 1])
            else:
                place = torch.randn(1, generator=generator, dtype=torch.float64).sigmoid()
                timesteps[row] = int(place * self.timesteps)
            torch.rand(2, generator=generator, out=chances[row])
            torch.randn(target.shape[1:], generator=generator, out=noise[row])
            if reference_noise is not None:
                torch.randn(reference.shape[1:], generator=generator, out=reference_noise[row])
        if self.per_step:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, "train.step", str(step)))
            chances[:, 1] = torch.rand(1, generator=generator)
        prompt_embeds = batch.tensors["prompt_embeds"]
        dropped = chances[:, 0] < self.drop_caption
        pooled = batch.tensors.get("pooled_prompt_embeds")
        if pooled is not None and self.empty_pooled is not None:
            pooled = torch.where(dropped.view(-1, 1), self.empty_pooled.to(pooled.dtype), pooled)
        return Inputs(
            target=target,
            reference=reference,
            noise=noise,
            reference_noise=reference_noise,
            timesteps=timesteps,
            prompt_embeds=torch.where(dropped.view(-1, 1, 1), self.empty_prompt.to(prompt_embeds.dtype), prompt_embeds),
            reference_prompt_embeds=batch.tensors["reference_prompt_embeds"],
            use_reference=tuple((chances[:, 1] >= self.drop_reference).tolist()),
            pooled_prompt_embeds=pooled,
            pooled_reference_prompt_embeds=batch.tensors.get("pooled_reference_prompt_embeds"),
        )


def _in_slots(references: torch.Tensor) -> torch.Tensor:
    """(B, n, …) to (n · B, …): the first reference of each sample, then the second of each."""
    return references.transpose(0, 1).flatten(0, 1)


class NoiseSchedule(Protocol):
    """The part of a diffusers scheduler that training needs."""

    config: Any
    alphas_cumprod: torch.Tensor

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor: ...

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor: ...


class Objective(nn.Module):
    """The BootPIG training loss as one module, so that there is one `prepare`, one `accumulate` and one DDP wrapper.

    The mean squared error against the noise (BootPIG, eq. 1), or against the velocity if the scheduler uses
    v-prediction. Unlike the paper's pseudo-code, the target is not the noisy latent.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: NoiseSchedule,
        vae_scale_factor: int = 8,
        min_snr_gamma: float | None = None,
    ) -> None:
        """
        Args:
            vae_scale_factor: picture pixels per latent pixel, for SDXL's size conditioning.
            min_snr_gamma: weight the loss of each sample by its noise level, see `_weights`. None: no weights.
        """
        super().__init__()
        self.min_snr_gamma = min_snr_gamma
        self.model = model
        self.scheduler = scheduler
        self.vae_scale_factor = vae_scale_factor

    def forward(self, **given: Any) -> torch.Tensor:
        """The mean loss of a batch, a float32 scalar. Arguments as `Inputs.on` returns them."""
        use_reference: tuple[bool, ...] = given["use_reference"]
        timesteps = given["timesteps"]
        if len(set(use_reference)) == 1:
            return self._loss(*self._predicted(**given), timesteps)
        # samples with and without a reference go through the networks separately
        total = torch.zeros((), device=timesteps.device)
        for kept in (True, False):
            rows = torch.tensor([row for row, use in enumerate(use_reference) if use == kept], device=timesteps.device)
            part = {name: value[rows] for name, value in given.items() if isinstance(value, torch.Tensor)}
            predicted = self._predicted(**part, use_reference=(kept,) * len(rows))
            total = total + self._loss(*predicted, timesteps[rows]) * len(rows)
        return total / len(use_reference)

    def losses(self, **given: Any) -> torch.Tensor:
        """The loss of each sample, without weights, (B,) float32. Arguments as `Inputs.on` returns them; either all or
        none of the samples use their reference."""
        prediction, goal = self._predicted(**given)
        return (prediction.float() - goal).square().flatten(1).mean(1)

    def _predicted(
        self,
        target: torch.Tensor,
        reference: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        reference_prompt_embeds: torch.Tensor,
        use_reference: tuple[bool, ...],
        reference_noise: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        pooled_reference_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's prediction and what it should be, (B, C, h, w) each. All or none of the samples use their
        reference."""
        noisy = self.scheduler.add_noise(target, noise, timesteps)
        reference_timesteps, pooled_reference = timesteps, pooled_reference_prompt_embeds
        if (count := reference.shape[1] if reference.ndim == 5 else 1) > 1:
            reference = _in_slots(reference)
            reference_noise = None if reference_noise is None else _in_slots(reference_noise)
            reference_timesteps = timesteps.repeat(count)
            reference_prompt_embeds = reference_prompt_embeds.repeat(count, 1, 1)
            pooled_reference = None if pooled_reference is None else pooled_reference.repeat(count, 1)
        if reference_noise is None:
            read, reference_timesteps = reference, torch.zeros_like(reference_timesteps)
        else:
            read = self.scheduler.add_noise(reference, reference_noise, reference_timesteps)
        conditions = {}
        if pooled_prompt_embeds is not None and pooled_reference is not None:
            conditions["added_cond_kwargs"] = self._conditions(pooled_prompt_embeds, target)
            conditions["reference_added_cond_kwargs"] = self._conditions(pooled_reference, reference)
        prediction = self.model(
            noisy,
            timesteps,
            prompt_embeds,
            read,
            reference_prompt_embeds,
            use_reference=use_reference[0],
            reference_timesteps=reference_timesteps,
            **conditions,
        )
        if self.scheduler.config.prediction_type == "v_prediction":
            return prediction, self.scheduler.get_velocity(target, noise, timesteps)
        return prediction, noise

    def _loss(self, prediction: torch.Tensor, goal: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self.min_snr_gamma is None:
            return mse_loss(prediction.float(), goal)
        each = (prediction.float() - goal).square().flatten(1).mean(1)
        return (each * self._weights(timesteps, self.min_snr_gamma)).mean()

    def _weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """The factor of each sample's loss: min(SNR, γ) / SNR for noise, min(SNR, γ) / (SNR + 1) for the velocity
        (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4)."""
        snr = compute_snr(self.scheduler, timesteps)
        if self.scheduler.config.prediction_type == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        return gamma / snr.clamp(min=gamma)  # the same as min(SNR, γ) / SNR, and defined for SNR = 0

    def _conditions(self, pooled: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """SDXL's added conditions: pooled embeds, and original size, crop and target size of the uncropped picture."""
        time_ids = torch.zeros(len(pooled), 6, dtype=pooled.dtype, device=pooled.device)
        time_ids[:, 0::4] = latents.shape[-2] * self.vae_scale_factor
        time_ids[:, 1::4] = latents.shape[-1] * self.vae_scale_factor
        return {"text_embeds": pooled, "time_ids": time_ids}
