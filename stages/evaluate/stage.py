"""The evaluate stage: the DreamBooth protocol on a folder of subjects that the model was not trained on.

Every method draws the same captions from the same noise. Drawn pictures are compared with the subject's real pictures,
but *not* with its references (unless every picture is a reference, as in the paper's table). So a model that only
copies its reference gains nothing from the reference's background.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bootpig.models.pipelines.base_check import base_problems
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems, trained_problems
from bootpig.models.pretrained.source import BASE, PIPELINE, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.engine.contract import (
    ADDED,
    MODEL,
    SPEED,
    Checkpoints,
    InputError,
    Pieces,
    Progress,
    ReduceInput,
    ReduceStage,
)
from bootpig.stages.engine.device_lock import MAX_PROCESSES, devices, too_many_processes
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.fields import Device, Dtype, ModelName, Revision
from bootpig.stages.engine.memory import Memory
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.protocol import Protocol, ProtocolConfig
from bootpig.stages.evaluate.rivals.config import RivalConfig, different_names
from bootpig.stages.evaluate.subjects import Benchmark
from bootpig.stages.pictures import PNG_BYTES
from bootpig.stages.segment.stage import SegmentConfig
from bootpig.storage.fingerprint import digest
from bootpig.storage.jsonio import parse_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bootpig.stages.evaluate.drawing import Drawing
    from bootpig.stages.evaluate.gallery import DrawnPictures, PictureFiles
    from bootpig.stages.evaluate.scoring import ImageEmbedder
    from bootpig.stages.evaluate.subjects import Subject

_LOG = logging.getLogger(__name__)


class EvaluateConfig(ProtocolConfig):
    """Settings of the evaluation of a trained model."""

    model: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="The base pipeline: a diffusers folder or a hub id. null: the base that the trained model names.",
    )
    revision: Revision = None
    pooling: Literal["softmax", "argmax", "average", "concat"] | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="How the outputs for several references are combined: softmax (paper), argmax (published code), or "
        "the paper's ablations average and concat. null: as the trained model says.",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    num_processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] | Literal["auto"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Processes on this machine that share the pictures, each on a device of its own. auto: one for "
        "each GPU that `device` allows; one on a CPU.",
    )
    benchmark: Benchmark | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="What `subjects` is: dreambooth or dreambench++, the published folder as it is, with its own "
        "classes and prompts. Its references are cut out. null: a folder of subjects.",
    )
    segment: SegmentConfig | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="Models that cut out the references of a benchmark. null: those of the segment stage.",
    )
    rivals: tuple[RivalConfig, ...] = Field(
        default=(),
        json_schema_extra=ADDED,
        description="Other methods that draw the same captions from the same seeds, see docs/rivals.md.",
    )

    @field_validator("rivals")
    @classmethod
    def _different_names(cls, rivals: tuple[RivalConfig, ...]) -> tuple[RivalConfig, ...]:
        return different_names(rivals)

    @model_validator(mode="after")
    def _of_a_benchmark(self) -> EvaluateConfig:
        if self.benchmark is not None and self.prompts:
            raise ValueError(f"prompts: {self.benchmark} has its own; remove them, or set benchmark to null")
        if self.benchmark is None and self.segment is not None:
            raise ValueError("segment: has no effect without benchmark; remove it")
        if self.benchmark is not None and self.compared is not None:
            raise ValueError(f"compared: {self.benchmark} says what is compared with; remove it")
        return self

    @model_validator(mode="after")
    def _pools_several(self) -> EvaluateConfig:
        if self.pooling is not None and self.references == 1:
            raise ValueError("pooling: no effect on one reference; set references to 2 or more, or remove it")
        return self


class Evaluate(ReduceStage):
    """Writes `metrics.json`, `scores.parquet`, `contact_sheet.png`, and all pictures in `images/<method>/`."""

    name = "evaluate"
    version = 1
    upstream = ("train",)
    config_class = EvaluateConfig
    config: EvaluateConfig

    def device(self) -> str:
        rank = os.environ.get("LOCAL_RANK")
        return self.config.device if rank is None or self.config.device not in ("auto", "cuda") else f"cuda:{rank}"

    def processes(self) -> int:
        wanted = self.config.num_processes
        return max(1, self._devices()) if wanted == "auto" else wanted

    def _devices(self) -> int:
        return len(devices(self.config.device))

    @property
    def protocol(self) -> Protocol:
        """Its subjects and judges."""
        return Protocol(self.config, self.name, self.config.benchmark)

    def models(self) -> Mapping[str, ModelSource]:
        c = self.config
        lookups = self.protocol.lookups()
        if (model := c.model) is not None:
            lookups["model"] = lambda: resolve("evaluate.model", model, c.revision, PIPELINE, BASE)
        return resolve_all(self.name, lookups)

    def check_models(self) -> list[str]:
        sources = self.models()
        problems = too_many_processes(self.name, self.config.num_processes, self._devices())
        if (model := sources.get("model")) is not None:
            problems += pipeline_problems(model) or base_problems(model)
        return problems + self.protocol.problems(sources)

    def check_trained(self, model: Path) -> None:
        """Check a trained model, its base and the judges, before anything is drawn.

        Raises:
            InputError, ModelError: one of them cannot be loaded; one line per problem.
        """
        base = self.base(model)
        problems = self.check_models()
        problems += [] if self.config.model is not None else pipeline_problems(base) or base_problems(base)
        if problems := problems + trained_problems("model", model, base):
            raise InputError("\n".join(problems))

    def estimate(self, work: Workload) -> Estimate:
        pixels = work.above.pixels
        try:
            captions = sum(len(subject.prompts) for subject in self.protocol.subjects())
        except InputError:
            captions = 30 * 25  # as in the DreamBooth benchmark
        pictures = captions * self.config.images_per_prompt
        # Passes per step: 2 without references, 3 and one of the Reference UNet with them; 12 for the four methods.
        c, base = self.config, self.config.model or work.above.base
        unet = sizes.unet_tflop(base, pixels)
        drawing = sizes.drawing_bytes(base, c.dtype, c.batch_size, 3 * c.batch_size, pixels)
        return Estimate(
            work.above,
            tflop=work.samples * (pictures * self.config.steps * 12 * unet),
            stored_bytes=work.samples * (4 * pictures * PNG_BYTES * pixels),
            memory=Memory(drawing + sizes.unet_bytes(base, c.dtype), "estimated"),  # and the Reference UNet
            assumptions=(sizes.ASSUMPTION, sizes.MEMORY_ASSUMPTION),
        )

    def base(self, model: Path) -> ModelSource:
        """The base of a trained model: the one named in the config, or else in the model's `bootpig.json`.

        Raises:
            InputError: `bootpig.json` is missing or names no base.
            ModelError: the base is not found.
        """
        try:
            info = parse_json((model / "bootpig.json").read_text(encoding="utf-8"))
            name, revision, models = info["base"], info.get("revision"), info.get("models")
            if not isinstance(name, str):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"evaluate: {str(model)!r} is not a trained model (bootpig.json is missing or names no base); give a "
                "folder written by train or save_bootpig"
            ) from None
        if self.config.model is not None:
            name, revision = self.config.model, self.config.revision
        source = resolve("evaluate.model", name, revision, PIPELINE, BASE)
        known = models.get("model") if isinstance(models, dict) else None
        if known is not None and known != source.as_json():
            _LOG.warning("evaluate.model: %r is not the base that %s was trained on", name, model)
        return source

    def check_ready(self) -> None:
        """Decode every picture, so that damaged ones are found before training, not after it."""
        self.protocol.decodable_subjects()

    def setup(self) -> None:
        import torch  # noqa: F401 - the engine sets torch's number of threads only if torch is imported

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        assert data.result is not None
        self.measure(data.result / "model", workdir, progress, checkpoints)

    def measure(
        self, model: Path, workdir: Path, progress: Progress, checkpoints: Checkpoints | None = None
    ) -> dict[str, Any]:
        """Evaluate a trained model and write the results to `workdir`. Memory use is independent of the number of
        pictures.

        Args:
            model: a folder written by `BootPIGPipeline.save_bootpig`.
            workdir: an empty folder.
            progress: progress callback.
            checkpoints: stores drawn pictures, so that they are not drawn again if the process is killed. None: not
                stored.

        Returns:
            The content of `metrics.json`. In other ranks than the first, nothing: they make their part of the pieces.

        Raises:
            InputError, ModelError: the subjects, the trained weights or a model cannot be used.
            FatalError: a method has no picture of a subject that is finite.
            RuntimeError: another rank has died.
        """
        import torch

        from bootpig.models.devices import torch_device
        from bootpig.stages.evaluate.drawing import METHODS, drawings
        from bootpig.stages.evaluate.embedding import embed_share
        from bootpig.stages.evaluate.judges import load_judges
        from bootpig.stages.evaluate.output import write_results
        from bootpig.stages.evaluate.scoring import Scores

        sources = self.models()
        share = Share.of_environment()
        subjects = self.protocol.decodable_subjects()
        device = torch_device("evaluate.device", self.config.device)
        rows = drawings(subjects, self.config.images_per_prompt, self.config.seed)
        base = self.base(model)
        key = self._key(base, rows, device)

        def open_pieces() -> Pieces | None:
            return None if checkpoints is None else checkpoints.pieces(key)

        judges = load_judges(sources)
        references, pictures = self._draw(
            model, base, subjects, rows, device, workdir / "images", open_pieces, share, progress
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

        def embed(embedder: ImageEmbedder) -> dict[str, NDArray[np.float32]]:
            return embed_share(embedder, pictures, share, open_pieces)

        if share.rank:
            with judges.on(device):
                for judge in (judges.clip, judges.dino):
                    embed(judge)
            return {}
        total = len(METHODS) * len(rows)
        progress(total, total, "scores")
        scores = Scores(
            subjects,
            rows,
            {method: drawn.files for method, drawn in pictures.items()},
            {method: drawn.not_finite for method, drawn in pictures.items()},
            embed,
        )
        with judges.on(device):
            scores.add_fidelity("clip_t", judges.clip)
            scores.add_likeness("clip_i", judges.clip)
            scores.add_likeness("dino", judges.dino)
        metrics = scores.metrics(self.config.seed)
        write_results(workdir, scores, references, metrics)
        return metrics

    def _key(self, base: ModelSource, rows: Sequence[Drawing], device: torch.device) -> str:
        """Digest of what changes the pictures, besides the trained model and subjects, which the fingerprint has."""
        import torch

        return digest(
            {
                "base": base.as_json(),
                "config": self.config.hashed(),
                "rows": [[row.file, row.prompt, row.seed] for row in rows],
                "batch_size": self.config.batch_size,
                "device": device.type,
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("diffusers", "pillow", "torch", "transformers")},
            }
        )

    def _draw(
        self,
        model: Path,
        base: ModelSource,
        subjects: Sequence[Subject],
        rows: Sequence[Drawing],
        device: torch.device,
        folder: Path,
        open_pieces: Callable[[], Pieces | None],
        share: Share,
        progress: Progress,
    ) -> tuple[dict[str, PictureFiles], dict[str, DrawnPictures]]:
        """The prepared references by subject, and the pictures of each method, one per row, as files in `folder`."""
        from bootpig.models.devices import torch_dtype
        from bootpig.models.painters.loading import set_scheduler
        from bootpig.models.pipelines.bases import load_base
        from bootpig.models.pretrained.finite import check_pipeline
        from bootpig.stages.evaluate.drawing import prepared_references
        from bootpig.stages.evaluate.gallery import PictureFiles
        from bootpig.stages.evaluate.methods import draw_methods
        from bootpig.stages.sampling import latent_shape

        pipeline: Any = load_base(base, torch_dtype(self.config.dtype))
        if self.config.scheduler is not None:
            set_scheduler(pipeline, base, self.config.scheduler)
        pipeline.read_like(parse_json((model / "bootpig.json").read_bytes()))  # for `untrained`
        pipeline.to(device)
        check_pipeline(base, pipeline)
        pipeline.set_progress_bar_config(disable=True)
        references: dict[str, PictureFiles] = {}
        (folder / "reference").mkdir(parents=True)
        side = min(latent_shape(pipeline)[2:]) * pipeline.vae_scale_factor
        for name, prepared in prepared_references(subjects, side):
            paths = [folder / "reference" / f"{name}-{number:02d}.png" for number in range(len(prepared))]
            for path, picture in zip(paths, prepared, strict=True):
                picture.save(path)
            references[name] = PictureFiles(paths)
        sampling = replace(self.config.sampling(), pooling=self.config.pooling)
        drawn = draw_methods(pipeline, model, rows, references, sampling, folder, open_pieces, share, progress)
        return references, drawn
