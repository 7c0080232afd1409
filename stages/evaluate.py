"""evaluate: the DreamBooth protocol over a folder of subjects that the model has never met.

Every method draws the same captions from the same noise. Generated pictures are compared with the subject's real
pictures *without* its references (unless every picture is a reference, as in the paper's table): a model that merely
copies its reference gains nothing from that picture's own background.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import Field, field_validator

from models.embedders import ClipEmbedder, DinoEmbedder
from models.pipeline import BootPIGPipeline
from models.sources import ModelSource, loading, resolve
from stages.base import (
    MODEL,
    SPEED,
    Checkpoints,
    InputError,
    Progress,
    ReduceInput,
    ReduceStage,
    StageConfig,
    sample_seed,
)
from stages.contact_sheet import SheetRow, contact_sheet
from stages.metrics import METRICS, aligned_cosine, collect, gap_closed, mean_cosine, mean_cosine_among
from stages.references import prepared_reference
from stages.subjects import OBJECT, Subject, on_white, read_picture, read_subjects

METHODS = ("text_only", "untrained", "bootpig", "bootpig_no_reference")
"""What draws. `text_only`: the base model; `untrained`: BootPIG before training; `bootpig_no_reference`: the trained
base model alone. `real` stands beside them in the table: real pictures compared with each other."""

SHEET_METHODS = ("text_only", "untrained", "bootpig")
SHEET_TITLES = ("reference", "text only", "untrained", "trained")
SHEET_ROWS = 64

_LOG = logging.getLogger(__name__)


class EvaluateConfig(StageConfig):
    """How a trained model is measured."""

    base: str = Field(
        min_length=1,
        json_schema_extra=MODEL,
        description="The text-to-image pipeline that was trained: a diffusers folder or a hub id.",
    )
    clip: str = Field(
        default="openai/clip-vit-base-patch32",
        min_length=1,
        json_schema_extra=MODEL,
        description="CLIP for clip_t and clip_i.",
    )
    dino: str = Field(
        default="facebook/dino-vits16",
        min_length=1,
        json_schema_extra=MODEL,
        description="ViT whose class token gives dino.",
    )
    subjects: str = Field(
        min_length=1,
        json_schema_extra=MODEL,
        description="Folder of subjects in DreamBooth layout: <subject>/00.png (the reference), 01.png, …",
    )
    prompts: tuple[str, ...] = Field(
        default=(),
        description="Captions for subjects that list none in subjects.yaml; {object} stands for the subject's class.",
    )
    references: int | Literal["all"] = Field(
        default=1,
        ge=1,
        le=16,
        description="A subject's first pictures that are references, kept out of the comparison; all: every picture is "
        "a reference and is compared with, as in the paper's table.",
    )
    images_per_prompt: int = Field(default=4, ge=1, le=100, description="Pictures a caption and method.")
    steps: int = Field(default=50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(default=7.5, ge=0, le=100, description="Text guidance, eta_text+im of eq. 4.")
    reference_guidance_scale: float = Field(default=5.0, ge=0, le=100, description="Reference guidance, eta_im.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Of the drawing networks.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the noise and of the bootstrap; not the run's seed.")
    batch_size: int = Field(default=16, ge=1, le=1024, json_schema_extra=SPEED, description="Pictures drawn together.")
    device: str = Field(default="auto", json_schema_extra=SPEED, description="auto, cpu, cuda, cuda:1, …")

    @field_validator("prompts")
    @classmethod
    def _has_object(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if missing := [prompt for prompt in prompts if OBJECT not in prompt]:
            raise ValueError(f"{missing[0]!r} has no {OBJECT}; write where the subject's class goes")
        return prompts


@dataclass(frozen=True)
class Drawing:
    """One picture to draw, by every method from the same noise."""

    subject: Subject
    prompt: str
    file: str
    """Name of the picture below a method's folder."""
    seed: int


@dataclass
class Scores:
    """One value a picture, N float64 each."""

    clip_t: np.ndarray
    clip_i: np.ndarray
    dino: np.ndarray


class Evaluate(ReduceStage):
    """Draws, compares, and writes `metrics.json`, `scores.parquet`, `contact_sheet.png` and `images/`."""

    name: ClassVar[str] = "evaluate"
    upstream: ClassVar[str | None] = "train"
    config_class: ClassVar[type[StageConfig]] = EvaluateConfig
    config: EvaluateConfig

    def models(self) -> Mapping[str, ModelSource]:
        sources = {
            field: resolve(f"evaluate.{field}", getattr(self.config, field))
            for field in ("base", "clip", "dino", "subjects")
        }
        self._subjects(sources["subjects"])
        return sources

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        assert data.result is not None
        self.evaluate(data.result / "model", workdir, progress)

    def evaluate(self, model: Path, workdir: Path, progress: Progress) -> dict[str, Any]:
        """Measure the trained `model` (a folder that `save_bootpig` wrote) and return what `metrics.json` holds.

        Raises:
            InputError, ModelError: the subjects, a model or the trained weights cannot be used.
        """
        sources = self.models()
        subjects = self._subjects(sources["subjects"])
        drawings = self._drawings(subjects)
        total = len(METHODS) * len(drawings)
        device = _device(self.config.device)
        pictures: dict[str, list[Image.Image]] = {}
        with loading("evaluate.base", self.config.base):
            base = sources["base"]
            pipeline = BootPIGPipeline.from_pretrained(
                base.path, revision=base.revision, torch_dtype=getattr(torch, self.config.dtype)
            )
        pipeline = pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        references = {
            subject.name: [prepared_reference(path, side) for path in subject.references] for subject in subjects
        }
        for method in METHODS:
            if method == "bootpig":
                with loading("train", str(model)):
                    pipeline.load_bootpig(str(model))
            shown = references if method in ("untrained", "bootpig") else None
            pictures[method] = []
            for begin in range(0, len(drawings), self.config.batch_size):
                batch = drawings[begin : begin + self.config.batch_size]
                pictures[method] += self._draw(pipeline, batch, shown)
                progress(sum(map(len, pictures.values())), total, method.replace("_", " "))
            _warn_of_blank(method, pictures[method])
        del pipeline
        gc.collect()
        progress(total, total, "scoring")
        metrics, table = self._measure(subjects, drawings, pictures, sources, device)
        _write(workdir, drawings, pictures, references, metrics, table)
        return metrics

    def _subjects(self, source: ModelSource) -> list[Subject]:
        folder = Path(source.path)
        if not folder.is_dir():
            raise InputError(
                f"evaluate.subjects: {self.config.subjects!r} is not a folder; give one with <subject>/00.png, …"
            )
        return read_subjects(folder, self.config.prompts, self.config.references)

    def _drawings(self, subjects: Sequence[Subject]) -> list[Drawing]:
        drawings = []
        for subject in subjects:
            for number, prompt in enumerate(subject.prompts):
                for image in range(self.config.images_per_prompt):
                    seed = sample_seed(self.config.seed, self.name, f"{subject.name}/{prompt}/{image}")
                    drawings.append(Drawing(subject, prompt, f"{subject.name}-{number:02d}-{image:02d}.png", seed))
        return drawings

    def _draw(
        self,
        pipeline: BootPIGPipeline,
        batch: Sequence[Drawing],
        references: Mapping[str, Sequence[Image.Image]] | None,
    ) -> list[Image.Image]:
        # The first noise is drawn here, so that no method's other draws can shift it.
        side = pipeline.unet.config.sample_size
        shape = (1, pipeline.unet.config.in_channels, side, side)
        latents = [torch.randn(shape, generator=torch.Generator().manual_seed(d.seed)) for d in batch]
        return pipeline(
            prompt=[drawing.prompt for drawing in batch],
            reference_images=None if references is None else [list(references[d.subject.name]) for d in batch],
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            reference_guidance_scale=self.config.reference_guidance_scale,
            latents=torch.cat(latents).to(pipeline.device, pipeline.unet.dtype),
            generator=[torch.Generator().manual_seed(d.seed ^ 1) for d in batch],
        ).images

    def _measure(
        self,
        subjects: Sequence[Subject],
        drawings: Sequence[Drawing],
        pictures: Mapping[str, Sequence[Image.Image]],
        sources: Mapping[str, ModelSource],
        device: str,
    ) -> tuple[dict[str, Any], pa.Table]:
        real = {s.name: [on_white(read_picture(path)) for path in s.real] for s in subjects}
        with loading("evaluate.clip", self.config.clip):
            clip = ClipEmbedder(sources["clip"].path, sources["clip"].revision, device=device)
        real_clip = {name: clip.images(images) for name, images in real.items()}
        captions = clip.texts([drawing.prompt for drawing in drawings])
        drawn_clip = {method: clip.images(images) for method, images in pictures.items()}
        real_clip_t = {subject.name: _caption_scores(subject, real_clip[subject.name], clip) for subject in subjects}
        del clip
        with loading("evaluate.dino", self.config.dino):
            dino = DinoEmbedder(sources["dino"].path, sources["dino"].revision, device=device)
        real_dino = {name: dino.images(images) for name, images in real.items()}
        drawn_dino = {method: dino.images(images) for method, images in pictures.items()}

        names = [drawing.subject.name for drawing in drawings]
        by_picture = {
            method: Scores(
                clip_t=aligned_cosine(drawn_clip[method], captions),
                clip_i=_against_real(drawn_clip[method], real_clip, names),
                dino=_against_real(drawn_dino[method], real_dino, names),
            )
            for method in METHODS
        }
        by_subject: dict[str, dict[str, list[float]]] = {
            method: {metric: _subject_means(getattr(scores, metric), names) for metric in METRICS}
            for method, scores in by_picture.items()
        }
        by_subject["real"] = {
            "clip_t": [float(np.mean(values)) for values in real_clip_t.values() if len(values)],
            "clip_i": [mean_cosine_among(embeddings) for embeddings in real_clip.values()],
            "dino": [mean_cosine_among(embeddings) for embeddings in real_dino.values()],
        }
        table = collect(by_subject, self.config.seed)
        means = {method: table[method]["dino"]["mean"] for method in ("text_only", "bootpig", "real")}
        metrics = {
            "subjects": len(subjects),
            "images": len(drawings),
            "methods": table,
            "gap_closed_dino": gap_closed(**means),
        }
        return metrics, _score_table(drawings, by_picture)


def _against_real(drawn: np.ndarray, real: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Mean cosine of each drawn picture with the real pictures of its own subject: N float64."""
    return np.array([mean_cosine(row, real[name])[0] for row, name in zip(drawn, names, strict=True)])


def _subject_means(values: np.ndarray, names: Sequence[str]) -> list[float]:
    order = np.array(names)
    return [float(values[order == name].mean()) for name in dict.fromkeys(names)]


def _caption_scores(subject: Subject, embeddings: np.ndarray, clip: ClipEmbedder) -> np.ndarray:
    """CLIP-T of the real pictures whose caption subjects.yaml gives."""
    known = [index for index, path in enumerate(subject.real) if path.name in subject.captions]
    if not known:
        return np.empty(0)
    texts = clip.texts([subject.captions[subject.real[index].name] for index in known])
    return aligned_cosine(embeddings[known], texts)


def _score_table(drawings: Sequence[Drawing], scores: Mapping[str, Scores]) -> pa.Table:
    rows = [
        {
            "method": method,
            "subject": drawing.subject.name,
            "object": drawing.subject.object,
            "prompt": drawing.prompt,
            "seed": drawing.seed,
            "file": f"images/{method}/{drawing.file}",
            **{metric: float(getattr(values, metric)[index]) for metric in METRICS},
        }
        for method, values in scores.items()
        for index, drawing in enumerate(drawings)
    ]
    return pa.Table.from_pylist(rows)


def _write(
    workdir: Path,
    drawings: Sequence[Drawing],
    pictures: Mapping[str, Sequence[Image.Image]],
    references: Mapping[str, Sequence[Image.Image]],
    metrics: Mapping[str, Any],
    table: pa.Table,
) -> None:
    for method, images in pictures.items():
        folder = workdir / "images" / method
        folder.mkdir(parents=True)
        for drawing, image in zip(drawings, images, strict=True):
            image.save(folder / drawing.file)
    folder = workdir / "images" / "reference"
    folder.mkdir(parents=True)
    for name, prepared in references.items():
        for index, image in enumerate(prepared):
            image.save(folder / f"{name}-{index:02d}.png")
    firsts = [index for index, drawing in enumerate(drawings) if drawing.file.endswith("-00.png")]
    # Spread over the subjects where there are more rows than a sheet can hold.
    shown = [firsts[int(i)] for i in np.linspace(0, len(firsts) - 1, min(len(firsts), SHEET_ROWS))]
    rows = [
        SheetRow(
            drawings[index].prompt,
            [references[drawings[index].subject.name][0], *(pictures[method][index] for method in SHEET_METHODS)],
        )
        for index in shown
    ]
    contact_sheet(SHEET_TITLES, rows).save(workdir / "contact_sheet.png")
    pq.write_table(table, workdir / "scores.parquet", compression="zstd")
    text = json.dumps(metrics, indent=2)
    (workdir / "metrics.json").write_text(f"{text}\n", encoding="utf-8")


def _warn_of_blank(method: str, images: Sequence[Image.Image]) -> None:
    blank = sum(all(low == high for low, high in np.atleast_2d(image.getextrema())) for image in images)
    if blank:
        _LOG.warning(
            "evaluate: %d of %d pictures of %s are of one colour; half precision can do that, try evaluate.dtype=float32",
            blank,
            len(images),
            method,
        )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
