"""Reference pictures: from what a user gives to what the VAE sees, and which prompt they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUBJECT_FRACTION = 0.75
"""A cut-out subject's longer side over the reference's side: about the middle of what training's augmentation draws."""

OPAQUE_FROM = 250
"""Alpha, of 255, from which a pixel counts as opaque: an RGBA picture that is opaque everywhere is a photo."""

ReferenceImage = Image.Image | np.ndarray[Any, Any] | Tensor
"""PIL, RGB or RGBA; numpy, HWC, uint8 in [0, 255] or float in [0, 1]; torch, CHW, float in [0, 1]; 3 or 4 channels."""


@dataclass(frozen=True, eq=False)
class PreparedReferences:
    """References as latents, made once and good for many calls of a pipeline."""

    latents: Tensor
    """(R, C, h, w): each distinct reference once, clean, times the VAE's scaling factor."""
    keys: tuple[str, ...]
    """R texts, the digest of each reference's content: decides its noise."""
    prompts: tuple[tuple[int, ...], ...]
    """For each prompt, its references. A single entry serves every prompt of a call."""

    @classmethod
    def from_latents(cls, latents: Sequence[Tensor]) -> PreparedReferences:
        """From latents that are there already: one tensor (references, C, h, w) for each prompt."""
        rows = torch.cat(list(latents))
        keys = tuple(hashlib.sha256(row.half().cpu().contiguous().numpy().tobytes()).hexdigest() for row in rows)
        bounds = np.cumsum([0, *(len(part) for part in latents)]).tolist()
        prompts = tuple(tuple(range(start, stop)) for start, stop in pairwise(bounds))
        return cls(rows, keys, prompts)

    def for_prompts(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The references of each of `count` prompts.

        Raises:
            ValueError: they were prepared for another number of prompts.
        """
        if len(self.prompts) == 1:
            return self.prompts * count
        if len(self.prompts) != count:
            raise ValueError(f"reference_images: prepared for {len(self.prompts)} prompts, but there are {count}")
        return self.prompts


ReferencesOfPrompts = ReferenceImage | Sequence[ReferenceImage] | Sequence[Sequence[ReferenceImage]]
"""An image or a flat list belongs to the one prompt; a list of lists has one list per prompt."""


def reference_lists(images: ReferencesOfPrompts, count: int) -> list[list[ReferenceImage]]:
    """The references of each of `count` prompts.

    Args:
        images: see `ReferencesOfPrompts`.

    Raises:
        ValueError: the numbers do not match, or a prompt has none.
    """
    if isinstance(images, (Image.Image, np.ndarray, Tensor)):
        images = [images]
    if not isinstance(images, (list, tuple)) or not images:
        raise ValueError(
            "reference_images: give an image, a list of images, or a list of such lists, none of them empty"
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
        raise ValueError("reference_images: each prompt needs at least one")
    return [list(each) for each in images]


def prepare_picture(image: ReferenceImage, size: int) -> Image.Image:
    """An RGB picture of (size, size) pixels, subject on white.

    RGBA with something transparent is cut out by its alpha and put in the middle, its longer side `SUBJECT_FRACTION` of
    the size. Anything else is taken as it is, padded with white to a square.

    Raises:
        ValueError: another mode, shape or range, NaN, nothing opaque, less than 8 pixels a side.
    """
    picture = _as_picture(image)
    if min(picture.size) < 8:
        raise ValueError(
            f"reference_images: {picture.size[0]}x{picture.size[1]} pixels are too few, give 8 a side or more"
        )
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).min() >= OPAQUE_FROM:
        picture = picture.convert("RGB")
    side = max(picture.size)
    longer = size
    if picture.mode == "RGBA":
        box = picture.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
        if box is None:
            raise ValueError("reference_images: an RGBA image is transparent everywhere, it shows no subject")
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
    """The digest of a prepared picture's pixels."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def pixel_values(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 3, H, W) float32 in [-1, 1], as the VAE takes them."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def _as_picture(image: ReferenceImage) -> Image.Image:
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"reference_images: mode {image.mode} is not RGB or RGBA, convert it")
        return image
    if isinstance(image, Tensor):
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"reference_images: a tensor must be CHW float in [0, 1], not {tuple(image.shape)}")
        image = image.detach().permute(1, 2, 0).float().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"reference_images: {type(image).__name__} is no image")
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"reference_images: shape {image.shape} is not that of an RGB or RGBA image")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all():
            raise ValueError("reference_images: an image holds NaN or infinite values")
        if image.min() < 0 or image.max() > 1:
            raise ValueError("reference_images: float values must lie in [0, 1]")
        image = np.round(image * 255).astype(np.uint8)
    return Image.fromarray(image)
