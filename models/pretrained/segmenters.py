"""Outside models that find a subject: a zero-shot detector by phrase, then segment-anything by box."""

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
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.utils import logging as transformers_logging

from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.source import ModelError, ModelSource, loading

Box = tuple[float, float, float, float]
"""xyxy, pixels."""

_BUILDERS = {
    "vit_b": ("segment_anything", "build_sam_vit_b"),
    "vit_l": ("segment_anything", "build_sam_vit_l"),
    "vit_h": ("segment_anything", "build_sam_vit_h"),
    "vit_toy": ("bootpig.models.toy.sam_model", "build_sam_vit_toy"),
}
SAM_TYPES = tuple(_BUILDERS)


@dataclass(frozen=True)
class Detection:
    """One box a detector found."""

    box: Box
    """Within the picture."""
    score: float
    """In [0, 1]."""


class ZeroShotDetector:
    """Finds what a phrase names: OWL-ViT, OWLv2, Grounding DINO, by transformers."""

    def __init__(self, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load model and processor; weights stay float32, `dtype` is what it computes in.

        Raises:
            ModelError: the files are incomplete or damaged, or it is no zero-shot detector.
        """
        transformers_logging.disable_progress_bar()
        with loading(source.field, source.source):
            model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
                source.path,
                revision=source.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            self._processor = AutoProcessor.from_pretrained(
                source.path, revision=source.revision or "main", trust_remote_code=False
            )
        if report["missing_keys"]:
            raise ModelError(
                f"{source.field}: {source.source!r} lacks {len(report['missing_keys'])} weights, such as "
                f"{min(report['missing_keys'])!r}; give a model trained to detect"
            )
        if not hasattr(self._processor, "post_process_grounded_object_detection"):
            raise ModelError(
                f"{source.field}: {source.source!r} has no grounded post-processing; "
                "give an OWL-ViT, OWLv2 or Grounding DINO model"
            )
        self._model = model.to(device).eval()
        self._device = device
        self._dtype = dtype
        # OWL's processor pads each phrase by itself, so only to a common maximum can they be stacked
        self._padding: str | bool = "max_length" if model.config.model_type.startswith("owl") else True

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str], threshold: float) -> list[Detection | None]:
        """The best box of each picture for its phrase, or None where no box scores above `threshold`.

        Args:
            images: N RGB pictures.
            phrases: N phrases, one a picture.
            threshold: in [0, 1).
        """
        inputs = self._processor(
            images=list(images),
            text=[[phrase] for phrase in phrases],
            padding=self._padding,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        with _autocast(self._device, self._dtype):
            outputs = self._model(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width) for image in images]
        )
        return [_best(result, image) for result, image in zip(found, images, strict=True)]


class BoxSegmenter:
    """segment-anything's `Sam`, prompted with one box a picture."""

    def __init__(self, source: ModelSource, sam_type: str, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load a checkpoint, safetensors or segment-anything's own .pth (read as weights only).

        Args:
            source: a local file, or one to be downloaded.
            sam_type: one of `SAM_TYPES`.

        Raises:
            ModelError: the file cannot be had, is damaged or holds another type's weights.
        """
        module, builder = _BUILDERS[sam_type]
        build: Callable[[], Sam] = getattr(importlib.import_module(module), builder)
        path = fetch(source)
        with loading(source.field, str(path)):
            if path.suffix == ".safetensors":
                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
        self._sam = build()
        try:
            self._sam.load_state_dict(weights)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{source.field}: {source.source!r} does not hold the weights of a {sam_type}; "
                f"give its own checkpoint or the sam_type that fits ({', '.join(SAM_TYPES)})"
            ) from error
        self._sam.to(device).eval()
        self._device = device
        self._dtype = dtype
        self._resize = ResizeLongestSide(self._sam.image_encoder.img_size)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], boxes: Sequence[Box]) -> list[tuple[np.ndarray, float]]:
        """The mask in each picture's box, and the quality (IoU) that SAM predicts for it.

        Args:
            images: N RGB pictures.
            boxes: N boxes, xyxy pixels of their pictures.

        Returns:
            N pairs of HW bool and a float, near [0, 1].
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


def _best(result: dict[str, Any], image: Image.Image) -> Detection | None:
    scores = result["scores"].float()
    if not len(scores):
        return None
    best = int(scores.argmax())
    limits = torch.tensor([image.width, image.height, image.width, image.height], dtype=torch.float32)
    x0, y0, x1, y1 = result["boxes"][best].float().cpu().clamp(min=torch.zeros(4), max=limits).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    return Detection((x0, y0, x1, y1), float(scores[best]))


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
