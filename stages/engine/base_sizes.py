"""Checks before a run that the base model's networks can take the sizes of its pictures."""

from __future__ import annotations

from bootpig.models.pretrained.source import ENCODERS, PIPELINE
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.config import PipelineConfig

_LEVELS = 4
"""Of a UNet whose config does not say."""


def size_problems(config: PipelineConfig) -> list[str]:
    """The sizes that the VAE and the UNet of `encode.model` cannot take, one line each.

    Empty if the model is not on this machine or not readable: other checks report that.
    """
    from bootpig.models.painters.checks import read_configs
    from bootpig.models.painters.family import latent_factor

    encode, drawn, side = config.encode, config.synthesize, config.augment.size
    try:
        configs = read_configs(resolve("encode.model", encode.model, encode.revision, PIPELINE, ENCODERS))
    except (ValueError, OSError):
        return []
    if configs is None or "unet" not in configs:
        return []
    channels = configs["unet"].get("block_out_channels")
    multiple = latent_factor(configs) * 2 ** ((len(channels) if isinstance(channels, list) else _LEVELS) - 1)

    def near(size: tuple[int, ...]) -> list[int]:
        return [max(multiple, round(each / multiple) * multiple) for each in size]

    needs = f"but encode.model {encode.model!r} needs multiples of {multiple}; the nearest"
    problems = []
    if side is not None and side % multiple:
        problems.append(f"augment.size: {side}, {needs} is {near((side,))[0]}")
    if drawn is None:
        return problems
    setting = "sizes" if drawn.sizes else "height and width"
    for painted, stored in zip(drawn.painted, drawn.stored, strict=True):
        if (stored[0] != stored[1] or side is None) and any(each % multiple for each in stored):
            resized = "" if stored == painted else f", resized to {list(stored)}"
            problems.append(f"synthesize.{setting}: {list(painted)}{resized}, {needs} is {near(stored)}")
    return problems
