"""The score stage: columns and embeddings that say how good a sample is. It rejects nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from bootpig.models.pretrained.heads import head_problems, read_head, width_problems
from bootpig.models.pretrained.inspection import judge_problems
from bootpig.models.pretrained.phrases import detector_problem
from bootpig.models.pretrained.sizes import EMBEDDING_TFLOP
from bootpig.models.pretrained.source import JUDGE, TRANSFORMER, ModelError, ModelSource, loading
from bootpig.models.pretrained.sources import resolve, resolve_all, resolve_file
from bootpig.stages.augment import prepare_reference
from bootpig.stages.caption.llm.estimates import expected_spending, spending_assumptions
from bootpig.stages.caption.llm.faults import FAULTS as UNANSWERED
from bootpig.stages.engine.contract import MapStage, Sample, SourceContext
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.pictures import decode_cut_out, on_all_cores
from bootpig.stages.score.config import ScoreConfig
from bootpig.stages.score.measures import around_subject, centre, outline, sharpness
from bootpig.stages.score.rubric.requests import COLUMNS, prompt_length, rate

if TYPE_CHECKING:
    from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
    from bootpig.models.pretrained.heads import LinearHead
    from bootpig.models.pretrained.safety import SafetyChecker
    from bootpig.models.pretrained.segmenters import ZeroShotDetector

OBJECT_TEXT = "A photo of {object}"
"""The text with which a cut-out is compared."""
SUBJECT_SCALE = 0.75
"""Longer side of the subject in the picture of the cut-out, as a fraction of its side."""
_WIDTH = 512
"""Of an embedding; for estimates, like `_TFLOP`, the operations of a ViT-B or a detector per picture in 10^12."""
_TFLOP = {"clip": 2 * EMBEDDING_TFLOP["clip"], "dino": EMBEDDING_TFLOP["dino"], "detector": 0.4, "safety": 0.16}


class Score(MapStage):
    """Target and mask → columns, and `<id>.safetensors` with normalised embeddings, float16.

    `clip` and `dino` (d) are of the picture, `clip_subject` (d) of the subject on white.
    """

    name = "score"
    upstream = ("view",)
    config_class = ScoreConfig
    config: ScoreConfig
    reads: ClassVar[tuple[str, ...]] = ("identity", "dropped")  # of view
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("object", pa.string()),
            ("caption_score", pa.float32()),  # cosine of picture and caption
            ("object_score", pa.float32()),  # cosine of the subject on white and the object phrase
            ("head_score", pa.float32()),  # of the picture
            ("sharpness", pa.float32()),  # around the subject, in [0, 1]
            ("outline", pa.float32()),  # edges on the mask's outline, compared with those around it
            ("area", pa.float32()),  # of the mask, as a fraction of the picture
            ("center_x", pa.float32()),  # of the mask, as a fraction of the width
            ("center_y", pa.float32()),
            ("detections", pa.int32()),  # of the object phrase
        ]
    )
    optional_columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("view_identity", pa.float32()),  # lowest cosine of the subject in a view and in the picture, cut out
            ("safety", pa.float32()),  # margin to what the checker flags, below 0 where it does
            ("rubric", pa.float32()),  # mean of the ratings
            ("rubric_ratings", pa.list_(pa.float32())),  # one per question
            ("rubric_reason", pa.string()),  # why there are none
        ]
    )
    reasons: ClassVar[Mapping[str, str]] = UNANSWERED

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    @property
    def sequential(self) -> bool:
        """With a rubric, so that its spending cap holds over all units."""
        return self.config.rubric is not None

    def check_ready(self) -> None:
        if self.config.rubric is not None:
            self.config.rubric.check_key()

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        lookups: dict[str, Callable[[], ModelSource]] = {}
        if (clip := c.clip) is not None:
            lookups["clip"] = lambda: resolve("score.clip", clip, c.clip_revision, TRANSFORMER, JUDGE)
        if (dino := c.dino) is not None:
            lookups["dino"] = lambda: resolve("score.dino", dino, c.dino_revision, TRANSFORMER, JUDGE)
        if (head := c.head) is not None:
            lookups["head"] = lambda: resolve_file("score.head", head, c.head_sha256)
        if (detector := c.detector) is not None:
            lookups["detector"] = lambda: resolve("score.detector", detector, c.detector_revision, TRANSFORMER)
        if (safety := c.safety) is not None:
            lookups["safety"] = lambda: resolve("score.safety", safety, c.safety_revision, TRANSFORMER, JUDGE)
        return resolve_all(self.name, lookups)

    def check_models(self) -> list[str]:
        sources = self.models()
        problems = [] if "clip" not in sources else judge_problems(sources["clip"], "clip")
        problems += [] if "dino" not in sources else judge_problems(sources["dino"], "dino")
        problems += [] if "head" not in sources else head_problems(sources["head"], sources["clip"])
        if (detector := sources.get("detector")) is not None:
            other = detector_problem(detector)
            problems += [other] if other is not None else judge_problems(detector, "detector")
        return problems + ([] if "safety" not in sources else judge_problems(sources["safety"], "safety"))

    def estimate(self, work: Workload) -> Estimate:
        c = self.config
        models = {"clip": c.clip, "dino": c.dino, "detector": c.detector, "safety": c.safety}
        used = [name for name, model in models.items() if model is not None]
        embeddings = 2 * ("clip" in used) + ("dino" in used)
        lines: tuple[str, ...] = ("score: models of the size of CLIP ViT-B/32, DINO ViT-S/16 and Grounding DINO",)
        spent: dict[str, Any] = {}
        if c.rubric is not None:
            answers = work.samples * len(c.rubric.questions) // 4  # about four ratings have the length of a caption
            spent = expected_spending(c.rubric, work.samples, prompt_length(c.rubric), answers, c.rubric.batch)
            lines += spending_assumptions(c.rubric, spent, c.rubric.batch, what="ratings")
        return Estimate(
            work.above,
            tflop=work.samples * sum(_TFLOP[name] for name in used),
            stored_bytes=work.samples * (2 * _WIDTH * embeddings + 3 * 512),  # with the tar's headers
            usd=spent.get("cost_usd") or 0.0,
            details={"llm": spent} if spent else {},
            assumptions=lines,
        )

    def setup(self) -> None:
        from bootpig.models.devices import torch_device, torch_dtype
        from bootpig.models.pretrained.downloads import fetch
        from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
        from bootpig.models.pretrained.finite import check_weights
        from bootpig.models.pretrained.segmenters import ZeroShotDetector
        from bootpig.models.pretrained.snapshots import fetch_folder

        sources, size = self.models(), self.config.batch_size
        device = torch_device("score.device", self.config.device)
        self._clip: ClipEmbedder | None = None
        self._dino: DinoEmbedder | None = None
        self._head: LinearHead | None = None
        self._detector: ZeroShotDetector | None = None
        self._safety: SafetyChecker | None = None
        if (source := sources.get("clip")) is not None:
            with loading(source.field, source.source):
                self._clip = ClipEmbedder(fetch_folder(source), device=str(device), batch_size=size)
                check_weights(source.field, source.source, self._clip.model)
        if (source := sources.get("dino")) is not None:
            with loading(source.field, source.source):
                self._dino = DinoEmbedder(fetch_folder(source), device=str(device), batch_size=size)
                check_weights(source.field, source.source, self._dino.model)
        if (source := sources.get("head")) is not None:
            assert self._clip is not None
            self._head = read_head(source, Path(fetch(source)))
            width = self._clip.model.config.projection_dim
            if problems := width_problems(source, self._head, sources["clip"], width):
                raise ModelError(problems[0])
        if (source := sources.get("detector")) is not None:
            self._detector = ZeroShotDetector(source, device=device, dtype=torch_dtype("float32"))
        if (source := sources.get("safety")) is not None:
            from bootpig.models.pretrained.safety import SafetyChecker

            with loading(source.field, source.source):
                self._safety = SafetyChecker(fetch_folder(source), device=str(device), batch_size=size)
                check_weights(source.field, source.source, self._safety.model)

    def teardown(self) -> None:
        del self._clip, self._dino, self._head, self._detector, self._safety

    def request(self, samples: Sequence[Sample], unit: int, context: SourceContext) -> list[Sample]:
        """Ask for the ratings of a rubric."""
        if self.config.rubric is None:
            return list(samples)
        return rate(self.config.rubric, context, unit, samples)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        scored = iter(self._scored([sample for sample in samples if sample.status == "ok"]))
        return [next(scored) if sample.status == "ok" else sample for sample in samples]

    def _scored(self, samples: Sequence[Sample]) -> list[Sample]:
        if not samples:
            return []
        pictures = on_all_cores(_Picture, samples)
        images = [picture.image for picture in pictures]
        columns: dict[str, Sequence[Any]] = {}
        embeddings: dict[str, NDArray[np.float32]] = {}
        if self._clip is not None:
            embeddings["clip"] = _normalised(self._clip.images(images))
            embeddings["clip_subject"] = _normalised(self._clip.images([picture.subject for picture in pictures]))
            captions = _normalised(self._clip.texts([sample.meta["caption"] for sample in samples]))
            phrases = [OBJECT_TEXT.replace("{object}", sample.meta["object"]) for sample in samples]
            objects = _normalised(self._clip.texts(phrases))
            columns["caption_score"] = (embeddings["clip"] * captions).sum(axis=1).tolist()
            columns["object_score"] = (embeddings["clip_subject"] * objects).sum(axis=1).tolist()
        if self._head is not None:
            columns["head_score"] = self._head(embeddings["clip"]).tolist()
        if self._dino is not None:
            embeddings["dino"] = _normalised(self._dino.images(images))
        if self._detector is not None:
            queries = [self.config.query.replace("{object}", sample.meta["object"]) for sample in samples]
            columns["detections"] = self._detector.count(images, queries, self.config.detection_threshold)
        if self._safety is not None:
            columns["safety"] = self._safety.margins(images).tolist()
        columns["view_identity"] = [_view_identity(sample) for sample in samples]
        for name in COLUMNS:
            columns[name] = [sample.columns.get(name) for sample in samples]
        return [
            replace(
                sample.ok(
                    files=_stored({name: rows[i] for name, rows in embeddings.items()}),
                    object=sample.meta["object"],
                    **picture.measured,
                    **{name: values[i] for name, values in columns.items() if values[i] is not None},
                ),
                message=sample.message,  # about its rating
            )
            for i, (sample, picture) in enumerate(zip(samples, pictures, strict=True))
        ]


class _Picture:
    """A sample's picture, its subject on white, and what can be measured without models."""

    def __init__(self, sample: Sample) -> None:
        cut_out = decode_cut_out(sample.files)
        mask = np.asarray(cut_out.getchannel("A")) > 0
        self.image: Image.Image = cut_out.convert("RGB")
        self.subject = prepare_reference(cut_out, max(cut_out.size), SUBJECT_SCALE)
        across, down = centre(mask)
        self.measured: dict[str, Any] = {
            "sharpness": sharpness(around_subject(self.image, mask)),
            "outline": outline(self.image, mask),
            "area": np.count_nonzero(mask) / mask.size,
            "center_x": across,
            "center_y": down,
        }


def _view_identity(sample: Sample) -> float | None:
    """The lowest identity of the views that were kept. None without any."""
    identities, dropped = sample.columns.get("identity") or (), sample.columns.get("dropped") or ()
    kept = [value for value, reason in zip(identities, dropped, strict=True) if not reason and value is not None]
    return min(kept, default=None)


def _normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (N×d) of length 1.

    Raises:
        ValueError: a row is all zeros or contains NaN or infinity.
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and norms.all()):
        raise ValueError("an embedding has no direction (all zeros, NaN or infinity)")
    return rows / norms


def _stored(embeddings: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    from safetensors.numpy import save

    if not embeddings:
        return {}
    return {"safetensors": save({name: row.astype(np.float16) for name, row in embeddings.items()})}
