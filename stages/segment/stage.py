"""The segment stage: finds the subject with a zero-shot detector and makes its mask with segment-anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator
from scipy import ndimage

from bootpig.models.pretrained.inspection import judge_problems, sam_problems
from bootpig.models.pretrained.phrases import detector_problem
from bootpig.models.pretrained.source import TRANSFORMER, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all, resolve_file
from bootpig.stages.engine.contract import MODEL, MapStage, Sample, StageConfig
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.fields import BatchSize, Device, Dtype, ModelName, Revision
from bootpig.stages.pictures import PNG_BYTES, decode_pngs, encode_mask, picture_size

if TYPE_CHECKING:
    from bootpig.models.pretrained.segmenters import BoxSegmenter, Detection, ZeroShotDetector


_TFLOP = {"vit_b": 1.4, "vit_l": 3.4, "vit_h": 6.4, "vit_toy": 0.001}
"""10^12 operations per picture of SAM and the detector together. The detector's part is 0.4, as for OWL-ViT."""

_EDGES = ndimage.generate_binary_structure(2, 1)
_EDGES_AND_CORNERS = ndimage.generate_binary_structure(2, 2)


class SegmentConfig(StageConfig):
    """The two models and the filters. Areas are fractions of the picture's area, the border is one of its side."""

    detector: ModelName = Field(
        description="A transformers zero-shot detector (OWL-ViT, OWLv2, Grounding DINO, MM Grounding DINO, LLMDet, "
        "OmDet-Turbo): a local folder or a hub id."
    )
    detector_revision: Revision = None
    sam: ModelName = Field(
        description="A segment-anything checkpoint, .safetensors or .pth: a local file, or an http(s) URL, which is "
        "downloaded once to ~/.cache/bootpig."
    )
    sam_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        json_schema_extra=MODEL,
        description="sha256 of that checkpoint, 64 hex digits. Required for a URL, optional for a local file.",
    )
    sam_type: Literal["vit_b", "vit_l", "vit_h", "vit_toy"] = Field(
        default="vit_h", description="Architecture of that checkpoint."
    )
    query: str = Field(default="{object}", description="The detector's query. {object} is the object phrase.")
    detection_threshold: float = Field(
        default=0.05, ge=0, lt=1, description="Boxes must score above it. If none does: no_detection."
    )
    min_score: float = Field(default=0.2, ge=0, le=1, description="Minimum score of the best box, else low_score.")
    min_sam_iou: float = Field(
        default=0.85, ge=0, le=1, description="Minimum mask quality (IoU) predicted by SAM, else low_sam_quality."
    )
    border: float = Field(
        default=25 / 512,
        ge=0,
        lt=0.5,
        description="Width of the border that a mask must not touch, as a fraction of the side, else touches_border. "
        "25/512 as in BootPIG, section 3.3. 0 disables the check.",
    )
    min_area: float = Field(default=0.02, ge=0, le=1, description="Minimum area of the mask, else too_small.")
    max_area: float = Field(default=0.8, ge=0, le=1, description="Maximum area of the mask, else too_large.")
    max_island: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Pieces of the mask up to this fraction of the largest piece are removed. 0: none.",
    )
    max_hole: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Holes up to this fraction of the mask's largest piece are filled. 0: none.",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: BatchSize = 8

    @field_validator("query")
    @classmethod
    def _query_names_the_object(cls, query: str) -> str:
        if "{object}" not in query:
            raise ValueError(f"{query!r} has no {{object}}; insert it in place of the object phrase")
        return query

    @model_validator(mode="after")
    def _bounds_in_order(self) -> SegmentConfig:
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area {self.min_area} is not below max_area {self.max_area}; no mask would pass")
        if self.detection_threshold > self.min_score:
            raise ValueError(
                f"detection_threshold {self.detection_threshold} is above min_score {self.min_score}, "
                "which would have no effect; lower it"
            )
        return self


class Segment(MapStage):
    """Target → the unchanged `<id>.png`, and the subject's mask `<id>.mask.json` as run lengths."""

    name = "segment"
    version = 4  # 1: the mask was the alpha channel of a re-encoded picture; 2 and 3: a PNG
    upstream = ("synthesize", "pictures")  # a configuration has one of them
    config_class = SegmentConfig
    config: SegmentConfig
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("score", pa.float32()),  # from the detector
            ("box", pa.list_(pa.float32())),  # from the detector, xyxy in pixels
            ("sam_iou", pa.float32()),  # predicted by SAM
            ("area", pa.float32()),  # of the cleaned mask, as a fraction of the picture
        ]
    )
    reasons: ClassVar[Mapping[str, str]] = {
        "no_detection": "the detector found nothing for the object phrase",
        "low_score": "the best box scores below min_score",
        "no_mask": "SAM's mask is empty",
        "low_sam_quality": "SAM predicts an IoU below min_sam_iou for its mask",
        "touches_border": "the mask touches the border, so the subject is probably cut off",
        "too_small": "the mask covers less than min_area",
        "too_large": "the mask covers more than max_area",
    }
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "no_detection": ("query", "detection_threshold"),
        "low_score": ("min_score",),
        "no_mask": ("sam",),
        "low_sam_quality": ("min_sam_iou",),
        "touches_border": ("border",),
        "too_small": ("min_area",),
        "too_large": ("max_area",),
    }

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    def batch_key(self, sample: Sample) -> tuple[int, int] | None:
        return picture_size(sample.files["png"])

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        return resolve_all(
            self.name,
            {
                "detector": lambda: resolve("segment.detector", c.detector, c.detector_revision, TRANSFORMER),
                "sam": lambda: resolve_file("segment.sam", c.sam, c.sam_sha256),
            },
        )

    def check_models(self) -> list[str]:
        sources = self.models()
        other = detector_problem(sources["detector"])
        detector = [other] if other is not None else judge_problems(sources["detector"], "detector")
        return detector + sam_problems(sources["sam"], self.config.sam_type)

    def estimate(self, work: Workload) -> Estimate:
        return Estimate(
            work.above,
            tflop=work.samples * _TFLOP[self.config.sam_type],
            stored_bytes=work.samples * PNG_BYTES * work.above.pixels,  # the size of masks is negligible
        )

    def setup(self) -> None:
        from bootpig.models.devices import torch_device, torch_dtype
        from bootpig.models.pretrained.segmenters import BoxSegmenter, ZeroShotDetector

        device, dtype = torch_device("segment.device", self.config.device), torch_dtype(self.config.dtype)
        sources, sam_type = self.models(), self.config.sam_type
        self._detector: ZeroShotDetector = ZeroShotDetector(sources["detector"], device=device, dtype=dtype)
        self._segmenter: BoxSegmenter = BoxSegmenter(sources["sam"], sam_type, device=device, dtype=dtype)

    def teardown(self) -> None:
        del self._detector, self._segmenter

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        images = decode_pngs([sample.files["png"] for sample in samples])
        queries = [self.config.query.replace("{object}", sample.meta["object"]) for sample in samples]
        detections = self._detector.detect(images, queries, self.config.detection_threshold)
        kept = {i: d for i, d in enumerate(detections) if d is not None and d.score >= self.config.min_score}
        masks = self._segmenter.segment([images[i] for i in kept], [d.box for d in kept.values()])
        by_index = dict(zip(kept, masks, strict=True))
        return [
            self._judge(sample, detection, by_index.get(i))
            for i, (sample, detection) in enumerate(zip(samples, detections, strict=True))
        ]

    def _judge(
        self,
        sample: Sample,
        detection: Detection | None,
        segmented: tuple[np.ndarray, float] | None,
    ) -> Sample:
        if detection is None:
            return sample.rejected("no_detection")
        found: dict[str, Any] = {"score": detection.score, "box": list(detection.box)}
        if segmented is None:
            return sample.rejected("low_score", **found)
        mask, iou = segmented
        mask = clean_mask(mask, self.config.max_island, self.config.max_hole)
        area = np.count_nonzero(mask) / mask.size
        facts = {**found, "sam_iou": iou, "area": area}
        if not area:
            return sample.rejected("no_mask", **facts)
        if not iou >= self.config.min_sam_iou:  # also rejects NaN
            return sample.rejected("low_sam_quality", **facts)
        if touches_border(mask, self.config.border):
            return sample.rejected("touches_border", **facts)
        if area < self.config.min_area:
            return sample.rejected("too_small", **facts)
        if area > self.config.max_area:
            return sample.rejected("too_large", **facts)
        return sample.ok(files={"png": sample.files["png"], "mask.json": encode_mask(mask)}, **facts)


def clean_mask(mask: np.ndarray, max_island: float, max_hole: float) -> np.ndarray:
    """Remove small islands, then fill small holes. Pieces are connected by edges or corners, holes only by edges.

    Args:
        mask: HW bool.
        max_island: pieces up to this fraction of the largest piece are removed.
        max_hole: enclosed holes up to this fraction of the largest piece are filled. Larger ones, such as the hole in
            the handle of a mug, are kept.

    Returns:
        HW bool.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    height, width = mask[box].shape
    subject = np.zeros((height + 2, width + 2), bool)  # with a ring that connects the background
    subject[1:-1, 1:-1] = mask[box]
    pieces, count = ndimage.label(subject, _EDGES_AND_CORNERS)
    largest = np.count_nonzero(subject)
    holes = count - euler_number(subject)
    if count > 1:
        areas = np.bincount(pieces.ravel())
        areas[0] = 0
        largest = areas.max()
        subject = (areas > max_island * largest)[pieces]
    if holes:
        gaps, _ = ndimage.label(~subject, _EDGES)
        fill = np.bincount(gaps.ravel()) <= max_hole * largest
        fill[[0, gaps[0, 0]]] = False
        subject |= fill[gaps]
    cleaned = np.zeros_like(mask)
    cleaned[box] = subject[1:-1, 1:-1]
    return cleaned


def euler_number(mask: np.ndarray) -> int:
    """The number of pieces minus the number of holes, connected as in `clean_mask`.

    By Euler's formula over the closed squares of the pixels: faces minus edges plus corners. To find that there are no
    holes, this takes a third of the time of labelling, and an eighth at 512 pixels.

    Args:
        mask: HW bool, surrounded by a ring of False.
    """
    edges = mask[1:] | mask[:-1], mask[:, 1:] | mask[:, :-1]
    corners = edges[0][:, 1:] | edges[0][:, :-1]
    return int(np.count_nonzero(mask) - sum(map(np.count_nonzero, edges)) + np.count_nonzero(corners))


def touches_border(mask: np.ndarray, border: float) -> bool:
    """Whether a HW bool `mask` touches the outer `border`, a fraction of each side, rounded up to whole pixels."""
    rows, columns = (math.ceil(border * side) for side in mask.shape)
    inner = mask[rows : mask.shape[0] - rows, columns : mask.shape[1] - columns]
    return int(np.count_nonzero(inner)) < int(np.count_nonzero(mask))
