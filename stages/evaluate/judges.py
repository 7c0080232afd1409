"""The models of the measures: CLIP, DINO, DINOv2, SigLIP. They are on the CPU except while they score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from bootpig.models.memory import free_memory
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder, SiglipEmbedder
from bootpig.models.pretrained.finite import check_weights
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ModelSource, loading
from bootpig.stages.evaluate.measures.background import Background
from bootpig.stages.evaluate.measures.copying import CopyPaste
from bootpig.stages.evaluate.measures.diversity import Diversity
from bootpig.stages.evaluate.measures.fidelity import Fidelity
from bootpig.stages.evaluate.measures.identity import Identity, SubjectParts
from bootpig.stages.evaluate.measures.likeness import Likeness
from bootpig.stages.evaluate.measures.masks import MaskFiles
from bootpig.stages.evaluate.measures.measure import Measure, RealVectors, TextVectors

KINDS: Mapping[str, type[Any]] = {
    "clip": ClipEmbedder,
    "dino": DinoEmbedder,
    "dinov2": DinoEmbedder,
    "siglip": SiglipEmbedder,
}


class Judges:
    """Some of the models, in float32."""

    def __init__(self, sources: Mapping[str, ModelSource], names: Iterable[str]) -> None:
        """Load the models `names`, of `KINDS`, to the CPU.

        Raises:
            ModelError: one of them cannot be loaded.
        """
        self.encoders: dict[str, Any] = {name: _load(name, sources[name]) for name in names}
        self._real: dict[str, RealVectors] = {}
        self._texts: dict[str, TextVectors] = {}

    @contextmanager
    def on(self, device: torch.device, *names: str) -> Iterator[None]:
        """A context in which these models (default: all) are on `device`."""
        used = [self.encoders[name] for name in names or self.encoders]
        try:
            for encoder in used:
                encoder.model.to(device)
            yield
        finally:
            for encoder in used:
                encoder.model.cpu()
            if device.type != "cpu":
                free_memory()

    def real(self, name: str) -> RealVectors:
        """Vectors of real pictures by one of the models."""
        return self._real.setdefault(name, RealVectors(self.encoders[name]))

    def texts(self, name: str) -> TextVectors:
        """Vectors of texts by CLIP or SigLIP."""
        return self._texts.setdefault(name, TextVectors(self.encoders[name]))

    def measure(self, name: str, parts: SubjectParts | None = None, masks: MaskFiles | None = None) -> Measure:
        """The measure of this name in `measures.names.MEASURES`.

        Args:
            parts: for identity.
            masks: for background.
        """
        match name:
            case "clip_t" | "siglip_t":
                model = name.removesuffix("_t")
                return Fidelity(self.real(model), self.texts(model))
            case "clip_i" | "siglip_i":
                return Likeness(self.real(name.removesuffix("_i")))
            case "dino" | "dinov2":
                return Likeness(self.real(name))
            case "copy_paste":
                return CopyPaste(self.real("dino"))
            case "diversity":
                return Diversity()
            case "identity":
                assert parts is not None
                return Identity(parts)
            case "background":
                assert masks is not None
                return Background(self.texts("clip"), masks)
            case _:
                raise LookupError(name)


def _load(name: str, source: ModelSource) -> Any:
    with loading(source.field, source.source):
        encoder = KINDS[name](fetch_folder(source))
        check_weights(source.field, source.source, encoder.model)
    return encoder
