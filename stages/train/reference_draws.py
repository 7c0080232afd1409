"""Draws how many and which of a sample's references a training step reads."""

from __future__ import annotations

import numpy as np
import torch

from bootpig.stages.engine.contract import InputError, sample_seed


def references_in(seed: int, step: int, fewest: int, most: int) -> int:
    """The number of references of each sample in a step, the same on all ranks."""
    if fewest == most:
        return fewest
    draw = sample_seed(seed, "train.references", str(step))
    return int(fewest + (draw >> 20) % (most + 1 - fewest))


def choose_references(references: torch.Tensor, seed: int, count: int) -> torch.Tensor:
    """One of the references (K, C, h, w) as (C, h, w), or `count` different ones as (count, C, h, w).

    Raises:
        InputError: there are fewer.
    """
    # use high bits for the choice, which is then independent of the noise drawn from the whole seed
    first = (seed >> 40) % len(references)
    if count == 1:
        return references[first]
    if count > len(references):
        raise InputError(
            f"train.references_per_sample: {count} references, but the encoded samples have {len(references)}; lower "
            "it, or raise augment.references"
        )
    others = [index for index in range(len(references)) if index != first]
    chosen = np.random.default_rng(seed >> 8).permutation(others)[: count - 1]
    return references[[first, *chosen.tolist()]]
