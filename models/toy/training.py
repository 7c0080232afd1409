"""The training loop shared by all toy checkpoints: resumable, with averaged weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bootpig.models.memory import keep_freed_memory


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters for training one checkpoint."""

    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    warmup: int = 100
    tail_from: float = 0.5
    """Fraction of the steps after which the learning rate falls linearly to a twentieth."""
    ema: float = 0.998
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate at `step`, counted from 0."""
        begin = self.tail_from * self.steps
        left = 1.0 if step < begin else 1.0 - 0.95 * (step - begin) / max(1.0, self.steps - begin)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * left


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[np.random.Generator], torch.Tensor],
    recipe: Recipe,
    work: Path,
    device: torch.device,
    report: Callable[[], str] | None = None,
) -> nn.Module:
    """Train `module` in place, and leave the averaged weights in it.

    `loss` gets a generator seeded by the step, so a resumed run sees the same batches.

    Args:
        name: name of the checkpoint; its state is stored in `work/<name>.pt`.
        module: the model to train.
        loss: computes the loss of a step, a float32 scalar, with the given generator.
        recipe: hyperparameters.
        work: folder for the state.
        device: where to train.
        report: optional; returns metrics to print every 500 steps.

    Returns:
        `module`, on `device`, with the exponential moving average of its weights.
    """
    keep_freed_memory()
    module.to(device).train()
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), betas=recipe.betas, weight_decay=recipe.weight_decay, lr=1e-3, fused=True
    )
    average = {key: p.detach().clone() for key, p in trained.items()}
    state_file = work / f"{name}.pt"
    begin = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average, begin = state["average"], state["step"]
        print(f"{name}: resumed at step {begin} of {recipe.steps}", flush=True)

    def save(step: int) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)

    # at these sizes plain attention is 15 to 45 % faster than the fused kernel on a CPU
    kernels = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    started, running = time.monotonic(), None
    for step in range(begin, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(kernels):
            value = loss(np.random.default_rng([len(name), step]))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], 1 - decay)
        done = step + 1
        if done % 50 == 0 or done == recipe.steps:
            running = value.item() if running is None else 0.8 * running + 0.2 * value.item()
            rate = (done - begin) / (time.monotonic() - started)
            left = (recipe.steps - done) / rate / 60
            print(
                f"{name}: step {done}/{recipe.steps}  loss {running:.4f}  {rate:.2f} it/s  {left:.1f} min left",
                flush=True,
            )
        if done % 250 == 0 or done == recipe.steps:
            save(done)
        if report and done % 500 == 0:
            print(f"{name}: {with_weights(module, average, report)}", flush=True)
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(average[key])
    return module.eval()


def with_weights(module: nn.Module, weights: dict[str, torch.Tensor], work: Callable[[], str]) -> str:
    """Run `work` with `weights` loaded into `module`, then restore the original weights."""
    own = {key: p.detach().clone() for key, p in module.named_parameters() if key in weights}
    try:
        module.eval().load_state_dict(weights, strict=False)
        return work()
    finally:
        module.load_state_dict(own, strict=False)
        module.train()
