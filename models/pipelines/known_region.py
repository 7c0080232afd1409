"""Inpainting without training: at every step, the part outside the mask is restored (BootPIG, section 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from bootpig.models.pipelines.inpaint_view import Box, Pixels, crop, in_proportion, repainted_cells, view_box

Pictures = Image.Image | Sequence[Image.Image] | None
"""One picture for all prompts, or a list with one per prompt. None raises an error."""


@dataclass
class InpaintOutput(BaseOutput):
    """Output of an inpainting pipeline."""

    images: Any
    nsfw_content_detected: list[bool] | None
    known_psnr_db: list[float]
    """For each image, the PSNR in dB of the network's own rendering of the known part, see `InpaintTask.paste`."""


@dataclass(eq=False)
class KnownRegion:
    """The part of the latents that is kept, for one batch."""

    latents: Tensor
    """(B, C, h, w), the clean latents of the picture."""
    repaint: Tensor
    """(B, 1, h, w): 1 where the mask is white, 0 where the picture is kept."""
    noise: Tensor
    """(B, C, h, w), the same at all steps."""

    def keep(self, scheduler: SchedulerMixin, latents: Tensor, following: Tensor | None) -> Tensor:
        """Replace the known part of `latents` by the picture's, noised to timestep `following`. None (after the last
        step): without noise."""
        known = self.latents
        if following is not None:
            known = scheduler.add_noise(known, self.noise, following.expand(len(known)))
        return torch.where(self.repaint.bool(), latents, known.to(latents.dtype))


@dataclass(eq=False)
class InpaintTask:
    """The pictures to inpaint, with their masks."""

    pictures: list[Image.Image]
    """As given, RGB."""
    masks: list[Image.Image]
    """L, 0 or 255, of the pictures' sizes; white is repainted."""
    boxes: list[Box]
    """xyxy in the pictures' pixels: the part that the network sees. Where it extends beyond a picture, the picture's
    edge pixels are repeated."""
    size: tuple[int, int]
    """(width, height) in pixels to which that part is resized for the network."""
    strength: float

    @classmethod
    def read(
        cls,
        image: Pictures,
        mask_image: Pictures,
        size: tuple[int, int],
        strength: float,
        padding: int | None,
        prompts: int,
    ) -> InpaintTask:
        """Check and pair pictures and masks.

        Args:
            image: a PIL image for all prompts, or a list with one per prompt.
            mask_image: likewise. White is repainted.
            size: (width, height) in pixels at which the network sees the picture.
            strength: in (0, 1]. 1 starts from pure noise, less from the noised picture.
            padding: margin in pixels around the mask; the network sees only that part, enlarged. None: the largest part
                of the picture around the mask with the aspect ratio of `size`.
            prompts: number of prompts.

        Raises:
            ValueError: a picture or mask is missing, sizes or numbers do not match, a mask is empty, or the strength is
                out of range.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength: {strength} must be above 0 and at most 1")
        pictures = [_plain("image", picture) for picture in _listed("image", image, prompts)]
        masks = [_binary(mask) for mask in _listed("mask_image", mask_image, prompts)]
        boxes = []
        for picture, mask in zip(pictures, masks, strict=True):
            if picture.size != mask.size:
                raise ValueError(f"mask_image: {mask.size} pixels for an image of {picture.size}; make the sizes equal")
            if mask.getbbox() is None:
                raise ValueError("mask_image: black everywhere; paint the part to repaint white")
            if padding is None:
                boxes.append(view_box(picture.size, mask.getbbox(), size))
            else:
                cropped = VaeImageProcessor.get_crop_region(mask, *size, pad=padding)
                boxes.append(in_proportion(cropped, picture.size, size))
        return cls(pictures, masks, boxes, size, strength)

    def region(self, encode: Callable[[Tensor], Tensor], noise: Tensor) -> KnownRegion:
        """The known region for a batch of latents like `noise` (B, C, h, w), in which images are grouped by prompt.

        Args:
            encode: maps pixels (N, 3, H, W) in [-1, 1] to latents.
            noise: the noise that is added to the known part.
        """
        each = len(noise) // len(self.pictures)
        views = [self._view(picture, box) for picture, box in zip(self.pictures, self.boxes, strict=True)]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
        views = [self._view(mask, box) for mask, box in zip(self.masks, self.boxes, strict=True)]
        cells = torch.from_numpy(np.stack(views))[:, None].float() / 255
        cells = F.interpolate(cells, size=noise.shape[-2:], mode="nearest-exact").round()
        drawn = [np.asarray(crop(mask, box)) > 0 for mask, box in zip(self.masks, self.boxes, strict=True)]
        whole = [repainted_cells(white, row.numpy() > 0) for white, row in zip(drawn, cells[:, 0], strict=True)]
        repaint = torch.from_numpy(np.stack(whole))[:, None]
        return KnownRegion(
            encode(pixels).to(noise).repeat_interleave(each, dim=0),
            repaint.to(noise).repeat_interleave(each, dim=0),
            noise,
        )

    def start(self, scheduler: SchedulerMixin, region: KnownRegion, timesteps: Tensor, latents: Tensor) -> Tensor:
        """The latents to start from: `latents`, which are pure noise, or with strength below 1 the noised picture."""
        if self.strength == 1:
            return latents
        return scheduler.add_noise(region.latents, region.noise, timesteps[:1].expand(len(latents)))

    def paste(self, generated: Pixels) -> tuple[list[Image.Image], list[float]]:
        """Paste the generated pixels into the pictures. Pixels outside the mask do not change.

        Args:
            generated: (B, H, W, 3) float in [0, 1].

        Returns:
            B pictures of the original sizes, and for each the PSNR (dB, peak 255) of the known part as the network
            rendered it, before pasting. It tells how well the new part fits the picture. NaN if the generated pixels
            are not finite; the picture is then worthless.
        """
        each = len(generated) // len(self.pictures)
        pasted, psnr = [], []
        for row, array in enumerate(generated):
            picture, mask, box = self.pictures[row // each], self.masks[row // each], self.boxes[row // each]
            view = Image.fromarray((np.nan_to_num(array) * 255).round().astype(np.uint8))
            view = view.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
            repainted = picture.copy()
            repainted.paste(view, box[:2])
            inside = (max(box[0], 0), max(box[1], 0), min(box[2], picture.width), min(box[3], picture.height))
            seen = view.crop((inside[0] - box[0], inside[1] - box[1], inside[2] - box[0], inside[3] - box[1]))
            known = np.asarray(mask.crop(inside)) == 0
            error = np.asarray(seen, float)[known] - np.asarray(picture.crop(inside), float)[known]
            mean = float(np.mean(error**2)) if error.size else 0.0
            decibel = float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))
            psnr.append(decibel if np.isfinite(array).all() else float("nan"))
            pasted.append(Image.composite(repainted, picture, mask))
        return pasted, psnr

    def _view(self, picture: Image.Image, box: Box) -> Pixels:
        view = crop(picture, box)
        if view.size == self.size:
            return np.asarray(view)
        resampling = Image.Resampling.NEAREST if picture.mode == "L" else Image.Resampling.LANCZOS
        return np.asarray(view.resize(self.size, resampling))


def _listed(name: str, given: Pictures, prompts: int) -> list[Image.Image]:
    pictures: Sequence[Any] = [given] * prompts if not isinstance(given, (list, tuple)) else given
    if len(pictures) != prompts:
        raise ValueError(f"{name}: {len(pictures)} for {prompts} prompts; give one per prompt, or a single one")
    if not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(f"{name}: give a PIL image, or a list with one per prompt")
    return list(pictures)


def _plain(name: str, picture: Image.Image) -> Image.Image:
    """RGB, without a profile or other metadata that the result would carry on."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise ValueError(f"{name}: mode {picture.mode} has more than 8 bits per channel, scale it to L or RGB")
    plain = picture.convert("RGB")
    plain.info = {}
    return plain


def _binary(mask: Image.Image) -> Image.Image:
    if mask.has_transparency_data:
        lowest, highest = mask.convert("RGBA").getchannel("A").getextrema()
        if lowest != highest:
            raise ValueError("mask_image: a part of it is transparent, give mode L, white = repaint")
    mask = _plain("mask_image", mask)
    return mask.convert("L").point(lambda level: 255 if level >= 128 else 0)
