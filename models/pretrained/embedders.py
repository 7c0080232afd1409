"""Embedding models for the DreamBooth protocol: CLIP for pictures and captions, DINO for pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from bootpig.models.pretrained.variants import variant_of

Embeddings = NDArray[np.float32]
_T = TypeVar("_T")


class ClipEmbedder:
    """Embeds pictures and captions in CLIP's joint space."""

    def __init__(self, source: str | Path, *, device: str = "cpu", batch_size: int = 32) -> None:
        """Load `source`, a folder with a `CLIPModel` and its processor, in float32.

        Raises:
            ValueError: it is another kind of model.
        """
        model = _model(source)
        if not isinstance(model, CLIPModel):
            raise ValueError(f"{source}: is a {type(model).__name__}, but a CLIPModel is needed")
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        self.batch_size = batch_size

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Embeddings:
        """N RGB pictures of any size → N×d float32, not normalised."""
        rows = []
        for batch in _batches(images, self.batch_size):
            pixel_values = _pixel_values(self.processor, batch, self.model.device)
            pooled = self.model.vision_model(pixel_values=pixel_values).pooler_output
            rows.append(self.model.visual_projection(pooled))
        return _array(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Embeddings:
        """N captions → N×d float32, not normalised. Captions that are too long for the model are truncated."""
        length = self.model.config.text_config.max_position_embeddings
        rows = []
        for batch in _batches(texts, self.batch_size):
            tokens = self.tokenizer(
                batch, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.model.device)
            pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            rows.append(self.model.text_projection(pooled))
        return _array(rows)


class DinoEmbedder:
    """Embeds pictures by the class token of a self-supervised ViT (DINO ViT-S/16 in the paper; DINOv2 works too)."""

    def __init__(self, source: str | Path, *, device: str = "cpu", batch_size: int = 32) -> None:
        """Load `source`, a folder with a `ViTModel` or `Dinov2Model` and its processor, in float32.

        Raises:
            ValueError: the model has no class token (a CLIP, a convolutional network).
        """
        model = _model(source)
        self.model = model.eval().requires_grad_(False).to(device)
        if not hasattr(getattr(self.model, "embeddings", None), "cls_token"):
            raise ValueError(f"{source}: is a {type(self.model).__name__}, but a ViT with a class token is needed")
        self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        self.batch_size = batch_size

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Embeddings:
        """N RGB pictures of any size → N×d float32, the last layer's class token, not normalised."""
        batches = _batches(images, self.batch_size)
        pixel_values = (_pixel_values(self.processor, batch, self.model.device) for batch in batches)
        return _array([self.model(pixel_values=values).last_hidden_state[:, 0] for values in pixel_values])


def _model(folder: str | Path) -> Any:
    """A model in float32, in its variant where it has no plain weights. Reads .bin files too, as weights only, because
    the authors of some judges publish nothing else."""
    variant = variant_of(Path(folder), "transformers", pickles=True)
    return AutoModel.from_pretrained(folder, variant=variant, dtype=torch.float32, trust_remote_code=False)


def _batches(rows: Sequence[_T], size: int) -> Iterator[list[_T]]:
    return (list(rows[begin : begin + size]) for begin in range(0, len(rows), size))


def _pixel_values(processor: Any, images: list[Image.Image], device: torch.device) -> torch.Tensor:
    rgb = [image.convert("RGB") for image in images]
    return processor(images=rgb, return_tensors="pt").pixel_values.to(device)


def _array(rows: list[torch.Tensor]) -> Embeddings:
    return torch.cat(rows).float().cpu().numpy()
