"""Embedding models that judge pictures: CLIP and SigLIP for pictures and captions, DINO for pictures and parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel, Siglip2Model, SiglipModel

from bootpig.models.pretrained.variants import variant_of

Embeddings = NDArray[np.float32]
_T = TypeVar("_T")

COVERED = 0.5
"""Fraction of a patch that a mask must cover, for the patch to be part of the subject."""


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
                list(batch), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
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

    @torch.inference_mode()
    def parts(self, images: Sequence[Image.Image], masks: Sequence[NDArray[np.bool_]]) -> list[Embeddings]:
        """The last layer's features of the patches that show the subject.

        Args:
            images: N RGB pictures.
            masks: N HW bool masks of their subjects, none empty. They go through the model's own resizing and cropping.

        Returns:
            N arrays of n×d float32, not normalised, n ≥ 1: the patches that the mask covers by `COVERED` or more, or
            else the patch that it covers most.

        Raises:
            ValueError: the model has no feature per patch.
        """
        size = self.model.config.patch_size
        found = []
        for image, mask in zip(images, masks, strict=True):
            pixel_values = _pixel_values(self.processor, [image], self.model.device)
            height, width = (side // size for side in pixel_values.shape[2:])
            tokens = self.model(pixel_values=pixel_values).last_hidden_state[0]
            if len(tokens) <= height * width:
                raise ValueError(f"a {type(self.model).__name__} has no feature for each of its patches")
            patches = tokens[-height * width :]  # class and register tokens come first
            covered = self._covered(mask, size)
            chosen = covered >= min(COVERED, float(covered.max()))
            found.append(patches[chosen.flatten().to(patches.device)].float().cpu().numpy())
        return found

    def _covered(self, mask: NDArray[np.bool_], size: int) -> torch.Tensor:
        """The fraction of each patch that a mask covers, as the model sees it. h×w float32."""
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
        pixels = self.processor(images=[picture], return_tensors="pt", do_normalize=False).pixel_values[0, :1].float()
        return torch.nn.functional.avg_pool2d(pixels, size)[0] / max(float(pixels.max()), 1e-9)


class SiglipEmbedder:
    """Embeds pictures and captions in the joint space of SigLIP or SigLIP 2.

    Captions are in lower case and padded to the model's full length, without an attention mask: that is how both were
    trained (arXiv 2303.15343 and 2502.14786, and their `big_vision` code), and other text gives other embeddings.
    """

    def __init__(self, source: str | Path, *, device: str = "cpu", batch_size: int = 32) -> None:
        """Load `source`, a folder with a `SiglipModel` or `Siglip2Model` and its processor, in float32.

        Raises:
            ValueError: it is another kind of model.
        """
        model = _model(source)
        if not isinstance(model, SiglipModel | Siglip2Model):
            raise ValueError(f"{source}: is a {type(model).__name__}, but a SiglipModel is needed")
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        self.batch_size = batch_size

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Embeddings:
        """N RGB pictures of any size → N×d float32, not normalised."""
        rows = []
        for batch in _batches(images, self.batch_size):
            # the processor of variable-size models also gives masks and grid sizes
            inputs = [self.processor(images=[image.convert("RGB")], return_tensors="pt") for image in batch]
            joined = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
            features = self.model.get_image_features(**{k: v.to(self.model.device) for k, v in joined.items()})
            rows.append(features.pooler_output)
        return _array(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Embeddings:
        """N captions → N×d float32, not normalised. Captions that are too long for the model are truncated."""
        length = self.model.config.text_config.max_position_embeddings
        rows = []
        for batch in _batches(texts, self.batch_size):
            lower = [text.lower() for text in batch]
            tokens = self.tokenizer(
                lower, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.model.device)
            rows.append(self.model.get_text_features(input_ids=tokens.input_ids).pooler_output)
        return _array(rows)


def _model(folder: str | Path) -> Any:
    """A model in float32, in its variant where it has no plain weights. Reads .bin files too, as weights only, because
    the authors of some judges publish nothing else."""
    variant = variant_of(Path(folder), "transformers", pickles=True)
    return AutoModel.from_pretrained(folder, variant=variant, dtype=torch.float32, trust_remote_code=False)


def _batches(rows: Sequence[_T], size: int) -> Iterator[Iterable[_T]]:
    """The rows in batches, each row read when it is needed: large pictures may come from files."""
    for begin in range(0, len(rows), size):
        yield (rows[place] for place in range(begin, min(begin + size, len(rows))))


def _pixel_values(processor: Any, images: Iterable[Image.Image], device: torch.device) -> torch.Tensor:
    """One picture after the other, so that at most one of them is in memory at its full size."""
    rows = [processor(images=[image.convert("RGB")], return_tensors="pt").pixel_values for image in images]
    return torch.cat(rows).to(device)


def _array(rows: list[torch.Tensor]) -> Embeddings:
    return torch.cat(rows).float().cpu().numpy()
