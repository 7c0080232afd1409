"""Reference pictures: checks them, assigns them to prompts, and converts them to the VAE's input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bootpig.models.pipelines.clean_references import KeptFeatures

SUBJECT_FRACTION = 0.75
"""Longer side of a cut-out subject as a fraction of the reference's side. About the middle of the range drawn in
training."""

OPAQUE_FROM = 250
"""Minimum alpha, of 255, of an opaque pixel. An RGBA picture that is opaque everywhere is treated as a photo."""

ReferenceImage = Image.Image | np.ndarray[Any, Any] | Tensor
"""3 or 4 channels, as PIL (RGB or RGBA), numpy (HWC, uint8 in [0, 255] or float in [0, 1]) or torch (CHW, float in
[0, 1])."""


@dataclass(frozen=True, eq=False)
class PreparedReferences:
    """References encoded as latents, for use in many calls of a pipeline.

    With a model that reads references without noise (`reference_timestep: zero`), they also hold the keys and values of
    the last call, which the next call uses if it has the same reference captions and the weights have not changed.
    Memory per reference and caption: 2 × tokens × channels numbers for each RSA layer, in the UNet's dtype. That is 46
    MB for Stable Diffusion 2.1 at 512 pixels in half precision, and it is freed with this object.
    """

    latents: Tensor
    """(R, C, h, w): each distinct reference once, without noise, times the VAE's scaling factor."""
    keys: tuple[str, ...]
    """R texts: the digest of each reference's content, which seeds its noise."""
    prompts: tuple[tuple[int, ...], ...]
    """For each prompt, the indices of its references. A single entry applies to all prompts of a call."""
    kept: KeptFeatures = field(default_factory=KeptFeatures, repr=False)
    """What the last call computed from them."""

    @classmethod
    def from_latents(cls, latents: Sequence[Tensor]) -> PreparedReferences:
        """Make them from existing latents: one tensor (references, C, h, w) per prompt."""
        rows = torch.cat(list(latents))
        keys = tuple(hashlib.sha256(row.half().cpu().contiguous().numpy().tobytes()).hexdigest() for row in rows)
        bounds = np.cumsum([0, *(len(part) for part in latents)]).tolist()
        prompts = tuple(tuple(range(start, stop)) for start, stop in pairwise(bounds))
        return cls(rows, keys, prompts)

    def for_prompts(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The reference indices for each of `count` prompts.

        Raises:
            ValueError: the references were prepared for another number of prompts.
        """
        if len(self.prompts) == 1:
            return self.prompts * count
        if len(self.prompts) != count:
            raise ValueError(f"reference_images: prepared for {len(self.prompts)} prompts, but there are {count}")
        return self.prompts


ReferencesOfPrompts = ReferenceImage | Sequence[ReferenceImage] | Sequence[Sequence[ReferenceImage]]
"""An image or a flat list for a single prompt, or a list with one list of images per prompt."""


def reference_lists(images: ReferencesOfPrompts, count: int) -> list[list[ReferenceImage]]:
    """The references for each of `count` prompts.

    Args:
        images: see `ReferencesOfPrompts`.
        count: number of prompts.

    Raises:
        ValueError: the numbers do not match, or a prompt has no references.
    """
    if isinstance(images, (Image.Image, np.ndarray, Tensor)):
        images = [images]
    if not isinstance(images, (list, tuple)) or not images:
        raise ValueError(
            "reference_images: give an image, a list of images, or a list of lists of images, none of them empty"
        )
    nested = [isinstance(image, (list, tuple)) for image in images]
    if not any(nested):
        if count != 1:
            raise ValueError(
                f"reference_images: {len(images)} images for {count} prompts: give one list of images per prompt"
            )
        return [list(images)]
    if not all(nested) or len(images) != count:
        raise ValueError(f"reference_images: give one list of images per prompt, for {count} prompts")
    if not all(images):
        raise ValueError("reference_images: each prompt needs at least one image")
    return [list(each) for each in images]


def prepare_picture(image: ReferenceImage, size: int) -> Image.Image:
    """Convert a reference to an RGB picture of (size, size) pixels, with the subject on white.

    RGBA with a transparent part is cropped to its opaque part and centred, with its longer side at `SUBJECT_FRACTION`
    of the size. Any other picture is padded with white to a square.

    Raises:
        ValueError: the mode, shape or range is not supported, or the image contains NaN, is fully transparent, or has a
            side below 8 pixels.
    """
    picture = _as_picture(image)
    if min(picture.size) < 8:
        raise ValueError(
            f"reference_images: {picture.size[0]}x{picture.size[1]} pixels is too small; use at least 8x8 pixels"
        )
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).min() >= OPAQUE_FROM:
        picture = picture.convert("RGB")
    side = max(picture.size)
    longer = size
    if picture.mode == "RGBA":
        box = picture.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
        if box is None:
            raise ValueError("reference_images: an RGBA image is transparent everywhere; make the subject opaque")
        picture = picture.crop(box)
        side = max(picture.size)
        longer = max(1, round(size * SUBJECT_FRACTION))
    scaled = (max(1, round(picture.width * longer / side)), max(1, round(picture.height * longer / side)))
    if scaled != picture.size:
        picture = picture.resize(scaled, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size), "white")
    corner = ((size - picture.width) // 2, (size - picture.height) // 2)
    canvas.paste(picture, corner, picture if picture.mode == "RGBA" else None)
    return canvas


def picture_key(picture: Image.Image) -> str:
    """The sha256 of a prepared picture's pixels."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def pixel_values(pictures: Sequence[Image.Image]) -> Tensor:
    """Convert pictures to the VAE's input, (N, 3, H, W) float32 in [-1, 1]."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def _as_picture(image: ReferenceImage) -> Image.Image:
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"reference_images: mode {image.mode} is not supported; convert it to RGB or RGBA")
        return image
    if isinstance(image, Tensor):
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"reference_images: a tensor must be CHW float in [0, 1], not {tuple(image.shape)}")
        image = image.detach().permute(1, 2, 0).float().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"reference_images: {type(image).__name__} is not an image; use PIL, numpy or torch")
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"reference_images: shape {image.shape} is not that of an RGB or RGBA image")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all():
            raise ValueError("reference_images: an image contains NaN or infinity")
        if image.min() < 0 or image.max() > 1:
            raise ValueError("reference_images: float values must be in [0, 1]")
        image = np.round(image * 255).astype(np.uint8)
    return Image.fromarray(image)
