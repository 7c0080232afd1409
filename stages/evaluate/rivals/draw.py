"""Draws the captions of an evaluation with its rivals, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from bootpig.models.devices import torch_dtype
from bootpig.models.pretrained.source import ModelSource
from bootpig.stages.evaluate.gallery import DrawnPictures
from bootpig.stages.evaluate.methods import Easel
from bootpig.stages.evaluate.protocol import ProtocolConfig
from bootpig.stages.evaluate.rivals.config import RivalConfig
from bootpig.stages.evaluate.rivals.models import Rival
from bootpig.stages.evaluate.rivals.painters import RivalPainter, Settings
from bootpig.stages.sampling import fix_of_not_finite


def draw_rivals(
    rivals: Sequence[Rival],
    sources: Mapping[str, ModelSource],
    pictures: Mapping[str, Sequence[Image.Image]],
    config: ProtocolConfig,
    dtype: str,
    device: torch.device,
    easel: Easel,
) -> dict[str, DrawnPictures]:
    """Draw with each rival. Its models are loaded only if it has pictures to draw, and freed before the next one's.

    Args:
        sources: all models of the evaluation, by name.
        pictures: the prepared references by name of the subject.
        config: the settings of the evaluation, for a rival that has none of its own.
        dtype: the same.

    Returns:
        The pictures by name of the rival; in other ranks than the first, only their own.

    Raises:
        ModelError: a model cannot be loaded.
        FatalError, RuntimeError: as in `Easel.draw`, or memory runs out with a single picture.
    """
    drawn = {}
    first = easel.count - len(rivals)
    for number, rival in enumerate(rivals, first):
        settings = settings_of(rival.config, config, dtype, device)
        painter = RivalPainter(rival, sources, pictures, settings)
        try:
            drawn[rival.config.name] = easel.draw(
                rival.config.name,
                number,
                painter.draw,
                lambda settings=settings, rival=rival: fix_of_not_finite(settings.dtype, f"{rival.field}.dtype"),  # type: ignore[misc]
            )
        finally:
            painter.close()
    return drawn


def settings_of(rival: RivalConfig, config: ProtocolConfig, dtype: str, device: torch.device) -> Settings:
    """How a rival draws."""
    return Settings(
        config.steps if rival.steps is None else rival.steps,
        config.guidance_scale if rival.guidance_scale is None else rival.guidance_scale,
        torch_dtype(rival.dtype or dtype),
        device,
        config.batch_size,
        rival.size,
    )
