"""The models that score drawn pictures, CLIP and DINO. They are on the CPU except while they score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bootpig.models.memory import free_memory
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.models.pretrained.finite import check_weights
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ModelSource, loading


@dataclass(frozen=True)
class Judges:
    """Both models, in float32."""

    clip: ClipEmbedder
    dino: DinoEmbedder

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """A context in which both are on `device`."""
        try:
            for judge in (self.clip, self.dino):
                judge.model.to(device)
            yield
        finally:
            for judge in (self.clip, self.dino):
                judge.model.cpu()
            if device.type != "cpu":
                free_memory()


def load_judges(sources: Mapping[str, ModelSource]) -> Judges:
    """Load the judges `clip` and `dino` to the CPU.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    clip_source, dino_source = sources["clip"], sources["dino"]
    with loading(clip_source.field, clip_source.source):
        clip = ClipEmbedder(fetch_folder(clip_source))
        check_weights(clip_source.field, clip_source.source, clip.model)
    with loading(dino_source.field, dino_source.source):
        dino = DinoEmbedder(fetch_folder(dino_source))
        check_weights(dino_source.field, dino_source.source, dino.model)
    return Judges(clip, dino)
