"""Timing helpers: two implementations run in turn, so that drift of the machine affects both; operation counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Measurement = dict[str, float | str]


def seconds_in_turn(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median CPU seconds of `rounds` calls of each; both must be warm. CPU time of all threads depends little on other
    load of the machine, and the median ignores outliers."""
    ways = (ours, baseline)
    spent: dict[int, list[float]] = {0: [], 1: []}
    for round_ in range(rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            begin = time.process_time()
            ways[which]()
            spent[which].append(time.process_time() - begin)
    return statistics.median(spent[0]), statistics.median(spent[1])


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products and convolutions in a call, including attention."""
    uncounted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with (
        FlopCounterMode(display=False, custom_mapping={uncounted: _attention_operations}) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        work()
    return int(counter.get_total_flops())


def _attention_operations(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Operations of q kᵀ and of its product with v, for shapes (B, heads, tokens, channels)."""
    batch, heads, rows, channels = query
    return 2 * batch * heads * rows * key[2] * (channels + value[3])
