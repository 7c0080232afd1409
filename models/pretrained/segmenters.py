"""Loads and runs models that locate a subject: a zero-shot detector for a phrase, and segment-anything for a box."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import nms
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.utils import logging as transformers_logging

from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.finite import check_weights
from bootpig.models.pretrained.phrases import Phrases, config_problem
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ModelError, ModelSource, loading
from bootpig.models.pretrained.variants import variant_of
from bootpig.models.pretrained.weight_files import is_safetensors

Box = tuple[float, float, float, float]
"""xyxy, pixels."""

_BUILDERS = {
    "vit_b": ("segment_anything", "build_sam_vit_b"),
    "vit_l": ("segment_anything", "build_sam_vit_l"),
    "vit_h": ("segment_anything", "build_sam_vit_h"),
    "vit_toy": ("bootpig.models.toy.sam_model", "build_sam_vit_toy"),
}
SAM_TYPES = tuple(_BUILDERS)

OVERLAP = 0.5
"""Boxes with a larger IoU are taken for the same thing when things are counted."""


@dataclass(frozen=True)
class Detection:
    """A box found by a detector."""

    box: Box
    """Clipped to the picture."""
    score: float
    """In [0, 1]."""


class ZeroShotDetector:
    """Finds the object named by a phrase with a detector of one of the `phrases.FAMILIES`, from transformers."""

    def __init__(self, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load model and processor. Weights stay float32; `dtype` is used for computation (autocast).

        Raises:
            ModelError: the files are incomplete or damaged, or the model is not of a known family.
        """
        transformers_logging.disable_progress_bar()
        folder = fetch_folder(source)
        with loading(source.field, source.source):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if problem := config_problem(source, config.to_dict()):
                raise ModelError(problem)
            model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder,
                variant=variant_of(folder, "transformers"),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            self._processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        if report["missing_keys"]:
            raise ModelError(
                f"{source.field}: {source.source!r} lacks {len(report['missing_keys'])} weights, such as "
                f"{min(report['missing_keys'])!r}; give a model trained for detection"
            )
        self._model = model.to(device).eval()
        check_weights(source.field, source.source, self._model)
        self._device = device
        self._dtype = dtype
        self._phrases = Phrases(self._processor.tokenizer, model.config)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str], threshold: float) -> list[Detection | None]:
        """The best box in each picture for its phrase, or None if no box scores above `threshold`.

        A picture's box does not depend on the others, up to rounding.

        Args:
            images: N RGB pictures.
            phrases: N phrases, one per picture. One without a word, such as "?" for Grounding DINO, finds nothing.
            threshold: in [0, 1).
        """
        found = self._by_picture(images, phrases, threshold)
        return [None if boxes is None else _best(boxes, image) for boxes, image in zip(found, images, strict=True)]

    @torch.inference_mode()
    def count(self, images: Sequence[Image.Image], phrases: Sequence[str], threshold: float) -> list[int]:
        """How many things each picture has that its phrase names. Boxes that overlap are one thing.

        Args:
            images, phrases, threshold: as in `detect`.
        """
        found = self._by_picture(images, phrases, threshold)
        return [0 if boxes is None else len(nms(boxes["boxes"], boxes["scores"], OVERLAP)) for boxes in found]

    def _by_picture(
        self, images: Sequence[Image.Image], phrases: Sequence[str], threshold: float
    ) -> list[dict[str, torch.Tensor] | None]:
        """The boxes above `threshold` in each picture, on the CPU: `boxes` (n×4, xyxy in pixels) and `scores` (n), both
        float32. None for a phrase without a word."""
        texts = [self._phrases.text(phrase) for phrase in phrases]
        groups: dict[tuple[int, int], list[int]] = {}
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            if text:
                groups.setdefault(image.size if self._phrases.family.pads_pictures else (0, 0), []).append(place)
        found: list[dict[str, torch.Tensor] | None] = [None] * len(texts)
        for places in groups.values():
            boxes = self._detect([images[place] for place in places], [texts[place] for place in places], threshold)
            for place, detected in zip(places, boxes, strict=True):
                found[place] = detected
        return found

    def _detect(self, images: list[Image.Image], texts: list[str], threshold: float) -> list[dict[str, torch.Tensor]]:
        inputs = self._processor(
            images=images,
            text=[[text] for text in texts],
            padding=self._phrases.family.padding,
            truncation=True,
            max_length=self._phrases.length,
            return_tensors="pt",
        ).to(self._device)
        with _autocast(self._device, self._dtype):
            outputs = self._model(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width) for image in images]
        )
        return [{name: result[name].float().cpu() for name in ("boxes", "scores")} for result in found]


class BoxSegmenter:
    """segment-anything's `Sam`, prompted with one box per picture."""

    def __init__(self, source: ModelSource, sam_type: str, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load a checkpoint: safetensors, or segment-anything's own .pth (loaded as weights only).

        Args:
            source: a local file, or a file to download.
            sam_type: one of `SAM_TYPES`.

        Raises:
            ModelError: the file cannot be downloaded, is damaged, or has the weights of another type.
        """
        path = fetch(source)
        with loading(source.field, str(path)):
            if is_safetensors(path):
                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
        self._sam = new_sam(sam_type)
        try:
            self._sam.load_state_dict(weights)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(f"{source.field}: {source.source!r} {wrong_sam_type(sam_type)}") from error
        self._sam.to(device).eval()
        check_weights(source.field, source.source, self._sam)
        self._device = device
        self._dtype = dtype
        self._resize = ResizeLongestSide(self._sam.image_encoder.img_size)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], boxes: Sequence[Box]) -> list[tuple[np.ndarray, float]]:
        """The mask for each picture's box, with its quality (IoU) as predicted by SAM.

        Args:
            images: N RGB pictures.
            boxes: N boxes, xyxy in pixels.

        Returns:
            N pairs of an HW bool mask and a float, roughly in [0, 1].
        """
        if not images:  # SAM fails on an empty batch
            return []
        records = []
        for image, box in zip(images, boxes, strict=True):
            size = (image.height, image.width)
            pixels = torch.from_numpy(self._resize.apply_image(np.asarray(image)))
            prompt = torch.from_numpy(self._resize.apply_boxes(np.array(box, np.float32), size)).float()
            records.append(
                {
                    "image": pixels.permute(2, 0, 1).to(self._device),
                    "boxes": prompt.to(self._device),
                    "original_size": size,
                }
            )
        with _autocast(self._device, self._dtype):
            outputs = self._sam(records, multimask_output=False)
        return [(o["masks"][0, 0].cpu().numpy(), float(o["iou_predictions"][0, 0])) for o in outputs]


def new_sam(sam_type: str) -> Sam:
    """A `Sam` with random weights; `sam_type` is one of `SAM_TYPES`."""
    module, builder = _BUILDERS[sam_type]
    build: Callable[[], Sam] = getattr(importlib.import_module(module), builder)
    return build()


def wrong_sam_type(sam_type: str, found: str | None = None) -> str:
    """What is wrong with a checkpoint that is not one of `sam_type`, but perhaps one of the type `found`."""
    fix = f"give another checkpoint or the sam_type that matches it ({found or ', '.join(SAM_TYPES)})"
    return f"does not contain the weights of a {sam_type}; {fix}"


def _best(result: dict[str, torch.Tensor], image: Image.Image) -> Detection | None:
    scores = result["scores"]
    if not len(scores):
        return None
    best = int(scores.argmax())
    limits = torch.tensor([image.width, image.height, image.width, image.height], dtype=torch.float32)
    x0, y0, x1, y1 = result["boxes"][best].clamp(min=torch.zeros(4), max=limits).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    return Detection((x0, y0, x1, y1), float(scores[best]))


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
