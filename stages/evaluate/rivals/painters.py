"""Draws pictures with the models of a rival: loaded once, or one after the other for models of single subjects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bootpig.models.memory import free_memory
from bootpig.models.painters.adapters import Embeddings, load_ip_adapter, load_lora, unload_lora
from bootpig.models.painters.editing import Editor
from bootpig.models.painters.family import Configs
from bootpig.models.painters.loading import load_text_to_image
from bootpig.models.painters.painter import Brush, Painter
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ModelError, ModelSource
from bootpig.stages.engine.slices import halving
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.rivals.models import Rival
from bootpig.stages.sampling import latent_shape

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a rival draws, with the evaluation's settings where it has none of its own."""

    steps: int
    guidance_scale: float
    dtype: torch.dtype
    device: torch.device
    batch_size: int
    size: int | None
    """Side in pixels. None: the resolution of its UNet, or that of the references."""


class RivalPainter:
    """One rival with its models. They are loaded when they are needed, and freed by `close`."""

    def __init__(
        self,
        rival: Rival,
        sources: Mapping[str, ModelSource],
        pictures: Mapping[str, Sequence[Image.Image]],
        settings: Settings,
    ) -> None:
        """
        Args:
            sources: as found by `Rival.sources`.
            pictures: the prepared references by name of the subject, RGB. The first one is given to the rival.
        """
        self.rival = rival
        self._sources = sources
        self._pictures = pictures
        self._settings = settings
        self._pipeline: Any = None
        self._loaded: str | None = None
        """The subject whose model or adapters are loaded."""
        self._embeddings: Embeddings | None = None

    def draw(self, rows: Sequence[Drawing]) -> Iterator[list[Image.Image | None]]:
        """Draw `rows` in batches, RGB, in order. None in place of a picture that is not finite.

        Raises:
            FatalError: memory runs out with a single picture.
            ModelError: a model cannot be loaded, or does not draw the size that it is asked for.
        """
        size = self._settings.batch_size
        for begin in range(0, len(rows), size):
            made: list[Image.Image | None] = []
            # a batch has one subject: its model, or its picture, is the same for all
            for _, group in groupby(rows[begin : begin + size], lambda row: row.subject.name):
                for batch in halving(list(group), size, self._batch, self._halved):
                    made += batch
            yield made

    def close(self) -> None:
        """Free the models."""
        self._pipeline, self._embeddings, self._loaded = None, None, None
        free_memory()

    def _batch(self, rows: Sequence[Drawing]) -> list[Image.Image | None]:
        subject = rows[0].subject
        self._load(subject.name)
        prompts = self.rival.prompts(subject)
        own = [prompts[subject.prompts.index(row.prompt)] for row in rows]
        c, settings, pipeline = self.rival.config, self._settings, self._pipeline
        if not c.fine_tuned and c.ip_adapter is None:
            return [self._edited(row, prompt) for row, prompt in zip(rows, own, strict=True)]
        painter = Painter(self.rival.field, pipeline)
        more: dict[str, Any] = {}
        if (unet := getattr(pipeline, "unet", None)) is not None:
            size = None if settings.size is None else (settings.size, settings.size)
            shape = latent_shape(pipeline, size)
            height, width = (side * pipeline.vae_scale_factor for side in shape[2:])
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(row.seed)) for row in rows]
            more["latents"] = torch.cat(noise).to(unet.device, unet.dtype)  # as for BootPIG
        else:
            height, width = self._sides(subject.name)
        if c.ip_adapter is not None:
            more["ip_adapter_image"] = [self._pictures[subject.name][0]]
        generators = [torch.Generator().manual_seed(row.seed ^ 1 if "latents" in more else row.seed) for row in rows]
        brush = Brush(
            steps=settings.steps, guidance_scale=settings.guidance_scale, negative_prompt="", height=height, width=width
        )
        drawn = painter.paint(own, generators, brush, **more).pictures
        return [_picture(np.asarray(each, np.float32)) for each in drawn]

    def _edited(self, row: Drawing, prompt: str) -> Image.Image | None:
        picture = self._pictures[row.subject.name][0]
        height, width = self._sides(row.subject.name)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        generator = torch.Generator().manual_seed(row.seed)
        editor = Editor(self.rival.field, self._pipeline)
        settings = self._settings
        return editor.edit(picture, prompt, generator, steps=settings.steps, guidance_scale=settings.guidance_scale)

    def _sides(self, subject: str) -> tuple[int, int]:
        picture = self._pictures[subject][0]
        return (picture.height, picture.width) if self._settings.size is None else (self._settings.size,) * 2

    def _load(self, subject: str) -> None:
        """Load what draws a subject, in place of what drew the one before."""
        rival, key = self.rival, self.rival.key
        shared = self._sources.get(f"{key}.model")
        if shared is None:
            if self._loaded != subject:
                self.close()
                self._pipeline = self._text_to_image(self._sources[f"{key}.model.{subject}"])
        elif self._pipeline is None:
            self._pipeline = self._text_to_image(shared)
            if (adapter := self._sources.get(f"{key}.ip_adapter")) is not None:
                self._add_ip_adapter(adapter)
        if self._loaded == subject:
            return
        try:
            if (lora := self._sources.get(f"{key}.lora.{subject}")) is not None:
                if self._loaded is not None:
                    unload_lora(self._pipeline)
                load_lora(self._pipeline, Path(lora.path))
            if (learned := self._sources.get(f"{key}.textual_inversion.{subject}")) is not None:
                self._embeddings = self._embeddings or Embeddings(self._pipeline)
                self._embeddings.load(Path(learned.path), rival.config.token or "")
        except ModelError as error:
            raise ModelError(f"{rival.field}: {error}") from error
        self._loaded = subject

    def _text_to_image(self, source: ModelSource) -> Any:
        return load_text_to_image(source, device=self._settings.device, dtype=self._settings.dtype)

    def _add_ip_adapter(self, source: ModelSource) -> None:
        rival = self.rival
        own: Configs = {"image_encoder": {}} if getattr(self._pipeline, "image_encoder", None) is not None else {}
        try:
            files = rival.ip_adapter_files(_adapter_folder(source, rival), own)
            load_ip_adapter(self._pipeline, files, 0.6 if rival.config.scale is None else rival.config.scale)
        except ModelError as error:
            text = str(error)
            raise ModelError(text if text.startswith(rival.field) else f"{source.field}: {text}") from error

    def _halved(self, size: int) -> None:
        _LOG.warning("%s: out of memory; continuing with batches of %d (evaluate.batch_size)", self.rival.field, size)


def _picture(pixels: np.ndarray[Any, Any]) -> Image.Image | None:
    if not np.isfinite(pixels).all():
        return None
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _adapter_folder(source: ModelSource, rival: Rival) -> Path:
    """The local folder of an IP-Adapter. Of a hub's repository, only the files that it needs are downloaded."""
    if source.revision is None:
        return fetch_folder(source)
    from huggingface_hub import snapshot_download

    c = rival.config
    inside = f"{c.subfolder}/" if c.subfolder else ""
    encoder = c.image_encoder or "image_encoder"
    folder = encoder if "/" in encoder else f"{inside}{encoder}"
    patterns = [f"{inside}{c.weight_name or '*.safetensors'}", f"{folder}/config.json", f"{folder}/model.safetensors"]
    return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=patterns))
