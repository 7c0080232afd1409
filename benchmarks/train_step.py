"""Measures a training step, compared with the published loop at the same networks, data, noise and precision."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks import networks
from benchmarks.published import record_whole, whole_pass
from benchmarks.timing import Measurement, operations, seconds_in_turn
from bootpig.models.core.bootpig import BootPIG
from bootpig.models.core.rsa import ReferenceFeatures, install_rsa, self_attention_blocks
from bootpig.stages.train.objective import Objective

WIDTH, LATENTS, BATCH, ROUNDS = 64, 32, 4, 5
VAE_WIDTH = 26
"""Chosen so that encoding a picture costs the same share of a UNet forward pass as at full size: 1.1 / 0.8."""

LEARNING_RATE_REFERENCE, LEARNING_RATE_BASE, CLIP = 5e-6, 1e-6, 1.0


Encoded = tuple[Tensor, Tensor]
"""Latents of targets and references (2, B, 4, h, w), and text embeds of both captions (2, B, S, D); float32."""


class Batch:
    """The random draws for a batch."""

    def __init__(self, size: int, latents: int, device: str = "cpu") -> None:
        torch.manual_seed(3)
        self.size, self.device = size, device
        self.timesteps = torch.randint(1000, (size,), device=device)
        self.noise = torch.randn(2, size, 4, latents, latents, device=device)
        self.scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def precision(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


class Encoders:
    """The pictures and captions of a batch, and the VAE and text encoder that encode them."""

    def __init__(self, batch: Batch, latents: int, width: int, vae_width: int) -> None:
        length, device = networks.text_length(latents), batch.device
        self.vae = networks.vae(vae_width).to(device).eval().requires_grad_(False)
        self.text_encoder = networks.text_encoder(networks.text_width(width), length).to(device).eval()
        torch.manual_seed(5)
        self.pictures = torch.rand(2 * batch.size, 3, 8 * latents, 8 * latents, device=device) * 2 - 1
        self.captions = torch.randint(1000, (2 * batch.size, length), device=device)

    @torch.no_grad()
    def __call__(self) -> Encoded:
        torch.manual_seed(4)
        latents = self.vae.encode(self.pictures).latent_dist.sample() * self.vae.config.scaling_factor
        embeds = self.text_encoder(self.captions).last_hidden_state
        return latents.float().unflatten(0, (2, -1)), embeds.float().unflatten(0, (2, -1))


class Ours:
    """Our training step: stored latents and embeds, truncated Reference UNet, fused AdamW."""

    def __init__(self, batch: Batch, stored: Encoded, unet: UNet2DConditionModel) -> None:
        self.model = BootPIG.from_unet(unet).train()
        self.objective: Any = Objective(self.model, batch.scheduler)
        groups = self.model.parameter_groups(LEARNING_RATE_REFERENCE, LEARNING_RATE_BASE)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.batch, self.stored = batch, stored

    def loss(self) -> Tensor:
        (target, reference), (prompt, caption) = self.stored
        noise, reference_noise = self.batch.noise
        with self.batch.precision():
            loss: Tensor = self.objective(
                target=target,
                reference=reference,
                noise=noise,
                reference_noise=reference_noise,
                timesteps=self.batch.timesteps,
                prompt_embeds=prompt,
                reference_prompt_embeds=caption,
                use_reference=(True,) * self.batch.size,
            )
        return loss


class Published:
    """The published training step: VAE and text encoder run in every step on both pictures and captions, the complete
    Reference UNet with a zero-weighted loss on its prediction, default AdamW."""

    def __init__(self, batch: Batch, encoders: Encoders, unet: UNet2DConditionModel) -> None:
        self.reference_unet = record_whole(copy.deepcopy(unet)).train()
        self.unet = unet.requires_grad_(False).train()
        install_rsa(self.unet)
        rsa = [
            p for _, block in self_attention_blocks(self.unet) for p in block.attn1.requires_grad_(True).parameters()
        ]
        references = list(self.reference_unet.parameters())
        self.parameters = [*references, *rsa]
        self.optimizer = torch.optim.AdamW(
            [{"params": references, "lr": LEARNING_RATE_REFERENCE}, {"params": rsa, "lr": LEARNING_RATE_BASE}]
        )
        self.batch, self.encoders = batch, encoders

    def loss(self) -> Tensor:
        batch, (noise, reference_noise) = self.batch, self.batch.noise
        with batch.precision():
            (target, reference), (prompt, caption) = self.encoders()
            noisy = batch.scheduler.add_noise(target, noise, batch.timesteps)
            noisy_reference = batch.scheduler.add_noise(reference, reference_noise, batch.timesteps)
            unread, layers = whole_pass(self.reference_unet, noisy_reference, batch.timesteps, caption)
            prediction = self.unet(
                noisy,
                batch.timesteps,
                prompt,
                cross_attention_kwargs={"reference": ReferenceFeatures(layers, [(row,) for row in range(batch.size)])},
                return_dict=False,
            )[0]
            return mse_loss(prediction.float(), noise) + 0.0 * mse_loss(unread.float(), reference_noise)


def update(way: Ours | Published) -> None:
    """One update of the weights."""
    way.loss().backward()
    torch.nn.utils.clip_grad_norm_(way.parameters, CLIP)
    way.optimizer.step()
    way.optimizer.zero_grad()


def measure(
    batch: int = BATCH, width: int = WIDTH, latents: int = LATENTS, vae_width: int = VAE_WIDTH, rounds: int = ROUNDS
) -> Measurement:
    """Samples per CPU second of both implementations, and the peak memory of each, measured in separate processes.

    Raises:
        RuntimeError: their losses differ.
    """
    sizes = (batch, width, latents, vae_width)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        peak, baseline_peak = pool.map(_peak_memory, ("ours", "published"), (sizes, sizes))
    drawn = Batch(batch, latents)
    encoders = Encoders(drawn, latents, width, vae_width)
    with drawn.precision():
        stored = encoders()
    ours = Ours(drawn, stored, networks.unet(width, latents))
    published = Published(drawn, encoders, networks.unet(width, latents))
    losses = float(ours.loss().detach()), float(published.loss().detach())
    if abs(losses[0] - losses[1]) > 0.01 * losses[1]:
        raise RuntimeError(f"the two implementations differ: losses {losses[0]} and {losses[1]}")
    for way in (ours, published):
        update(way)
    seconds = seconds_in_turn(lambda: update(ours), lambda: update(published), rounds)
    value, baseline = (batch / taken for taken in seconds)
    return {
        "ratio": round(value / baseline, 3),
        "value": round(value, 3),
        "baseline": round(baseline, 3),
        "unit": f"samples per CPU second; batch {batch}, bf16 autocast, {width} wide, "
        f"{torch.get_num_threads()} threads",
        "peak_mib": peak,
        "baseline_peak_mib": baseline_peak,
        "vae_to_unet": round(vae_to_unet(encoders, published), 3),
    }


def _peak_memory(way: str, sizes: tuple[int, int, int, int]) -> int:
    """Peak memory in MiB of a process that does two updates, including PyTorch itself."""
    size, width, latents, vae_width = sizes
    batch, unet = Batch(size, latents), networks.unet(width, latents)
    if way == "ours":
        length = networks.text_length(latents)
        stored = torch.randn(2, size, 4, latents, latents), torch.randn(2, size, length, networks.text_width(width))
        trained: Ours | Published = Ours(batch, stored, unet)
    else:
        trained = Published(batch, Encoders(batch, latents, width, vae_width), unet)
    for _ in range(2):
        update(trained)
    # not getrusage: on Linux its peak starts with that of the parent process
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def vae_to_unet(encoders: Encoders, published: Published) -> float:
    """Operations of the VAE relative to a UNet forward pass, for one picture: 1.1 / 0.8 at full size."""
    batch, (latents, embeds) = published.batch, encoders()
    with torch.no_grad():
        one = operations(lambda: encoders.vae.encode(encoders.pictures[:1]))
        return one / operations(lambda: published.unet(latents[0, :1], batch.timesteps[:1], embeds[0, :1]))
