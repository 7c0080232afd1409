"""The computed peak memory of an update is what PyTorch's allocator measures."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bootpig.models.core.lora import Lora
from bootpig.stages.train.peak import Part, peak

SMALL: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "use_linear_projection": True,
}
"""A UNet like SD 2.1's at a tenth of its width."""

TOLERANCE = 0.02
"""Largest relative difference: the CPU's kernels have small buffers of their own."""

LORA = Lora(4, 4, ("to_q", "to_k", "to_v", "to_out.0"))


def measured(part: Part) -> int:
    """The most bytes that a part of a batch, and the update after it, allocate on a CPU at once."""
    optimizer = torch.optim.AdamW(part.trained, fused=True)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        part()
        torch.nn.utils.clip_grad_norm_(part.trained, 1.0)
        optimizer.step()
    now = most = 0
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("lora", "checkpointing"), [(None, True), (LORA, False)])
def test_the_computed_peak_is_the_allocators(lora: Lora | None, checkpointing: bool) -> None:
    def make(batch: int, cuda: bool = False) -> Part:
        return Part(SMALL, batch=batch, latents=32, tokens=16, lora=lora, checkpointing=checkpointing, cuda=cuda)

    found = peak(make)
    part = make(4)
    part.allocate()
    inputs = sum(value.nbytes for value in part.inputs.values() if isinstance(value, torch.Tensor))
    assert found.at(4) - inputs == pytest.approx(measured(part), rel=TOLERANCE)
    assert found.trained == sum(parameter.nbytes for parameter in part.trained)
    assert found.frozen == sum(tensor.nbytes for tensor in part.model.parameters()) - found.trained
    # norms are computed in float32 on a GPU
    assert checkpointing or 1.1 < peak(partial(make, cuda=True)).at(4) / found.at(4) < 2
