"""Two ways of the same work in turns, so that a machine that drifts is fair to both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Measurement = dict[str, float | str]


def seconds_in_turn(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median of the CPU seconds that `rounds` calls of each take; both have been called before. CPU time, of all
    threads: what others take away of the machine counts little, and a lucky or an unlucky turn does not."""
    ways = (ours, baseline)
    spent: dict[int, list[float]] = {0: [], 1: []}
    for round_ in range(rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            begin = time.process_time()
            ways[which]()
            spent[which].append(time.process_time() - begin)
    return statistics.median(spent[0]), statistics.median(spent[1])


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, attention included."""
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
    """q kᵀ and its product with v, from shapes (B, heads, tokens, channels)."""
    batch, heads, rows, channels = query
    return 2 * batch * heads * rows * key[2] * (channels + value[3])
