"""Gives each caption scenes of other captions of its unit, in which the view stage draws its subject again."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bootpig.models.pipelines.reference_captions import object_end


def scene_of(caption: str) -> str:
    """Position and scene: what follows the object phrase and its comma. Empty if there is none."""
    end = object_end(caption)
    return "" if end is None else caption[end:].strip(" ,，、､.")


def in_scene(caption: str, scene: str) -> str:
    """The caption with another position and scene."""
    end = object_end(caption)
    return f"{caption if end is None else caption[:end]}, {scene}"


def other_scenes(captions: Sequence[str], ids: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """For each caption up to `count` different scenes of the others, none of them its own.

    A caption's scenes depend on the captions of its unit, the seed and the sample id, not on the order of work.

    Args:
        captions: the captions of one unit; those without a scene are not drawn from.
        ids: their sample ids.
    """
    scenes = sorted({scene for caption in captions if (scene := scene_of(caption))})
    drawn = []
    for caption, id in zip(captions, ids, strict=True):
        others = [scene for scene in scenes if scene != scene_of(caption)]
        drawn.append(random.Random(f"{seed}/caption/scenes/{id}").sample(others, min(count, len(others))))
    return drawn
