"""The evaluate stage: the DreamBooth protocol on a folder of subjects that the model was not trained on.

Every method draws the same captions from the same noise. Drawn pictures are compared with the subject's real pictures,
but *not* with its references (unless every picture is a reference, as in the paper's table). So a model that only
copies its reference gains nothing from the reference's background.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bootpig.models.pipelines.base_check import base_problems
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems, trained_problems
from bootpig.models.pretrained.source import BASE, PIPELINE, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all, resolve_file
from bootpig.stages.caption.llm.estimates import expected_spending
from bootpig.stages.caption.llm.spending import TOKENS_PER_PICTURE
from bootpig.stages.engine.contract import ADDED, MODEL, SPEED, InputError, Progress, ReduceInput, ReduceStage
from bootpig.stages.engine.device_lock import MAX_PROCESSES, devices, too_many_processes
from bootpig.stages.engine.earlier import Earlier, no_earlier
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.fields import Device, Dtype, ModelName, Revision
from bootpig.stages.engine.memory import Memory
from bootpig.stages.engine.saved import Checkpoints, Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.config import ComparedConfig
from bootpig.stages.evaluate.measures.config import Measured
from bootpig.stages.evaluate.protocol import Protocol
from bootpig.stages.evaluate.rivals.models import Rival, rivals_of
from bootpig.stages.evaluate.vision_judge_config import QUESTIONS, JudgeConfig
from bootpig.stages.pictures import PNG_BYTES
from bootpig.storage.fingerprint import digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import Parts

if TYPE_CHECKING:
    import torch

    from bootpig.stages.evaluate.drawing import Drawing
    from bootpig.stages.evaluate.subjects import Subject

_LOG = logging.getLogger(__name__)

MEASURES_ASSUMPTION = (
    "evaluate: measures with models of the size of CLIP ViT-B/32, DINO ViT-S/16, DINOv2 ViT-B/14 and SigLIP ViT-B/16; "
    "none is taken over from an earlier evaluation"
)

PROMPT_TOKENS = 200.0
"""Of a question to a judge without its pictures, about."""


class EvaluateConfig(ComparedConfig):
    """Settings of the evaluation of a trained model."""

    model: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="The base pipeline: a diffusers folder or a hub id. null: the base that the trained model names.",
    )
    revision: Revision = None
    dtype: Dtype = "float32"
    device: Device = "auto"
    num_processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] | Literal["auto"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Processes on this machine that share the pictures, each on a device of its own. auto: one for "
        "each GPU that `device` allows; one on a CPU.",
    )
    judge: JudgeConfig | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="A vision model behind an OpenAI-compatible endpoint that scores each picture. null: none.",
    )


class Evaluate(ReduceStage):
    """Writes `metrics.json`, `measures.json`, `scores.parquet`, `contact_sheet.png`, and all pictures in
    `images/<method>/`."""

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

    @property
    def measured(self) -> Measured:
        """What is measured, and its models."""
        return Measured(self.config, self.name)

    def models(self) -> Mapping[str, ModelSource]:
        c, measured = self.config, self.measured
        lookups = measured.lookups(self.protocol.lookups())
        if (model := c.model) is not None:
            lookups["model"] = lambda: resolve("evaluate.model", model, c.revision, PIPELINE, BASE)
        if c.judge is not None and (ratings := c.judge.ratings) is not None:
            lookups["ratings"] = lambda: resolve_file("evaluate.judge.ratings", ratings)
        found = {**resolve_all(self.name, lookups), **measured.segmenters()}
        if c.benchmark is not None:
            found |= {f"segment.{name}": source for name, source in measured.segment().models().items()}
        if c.rivals:
            subjects = self.protocol.subjects()
            found |= {name: each for rival in self._rivals() for name, each in rival.sources(subjects).items()}
        return found

    def _rivals(self) -> list[Rival]:
        return rivals_of(self.config.rivals)

    def check_models(self) -> list[str]:
        sources = dict(self.models())
        problems = too_many_processes(self.name, self.config.num_processes, self._devices())
        if (model := sources.get("model")) is not None:
            problems += pipeline_problems(model) or base_problems(model)
        if self.config.benchmark is not None and not self.config.needs_masks:
            problems += self.measured.segment().check_models()
        for rival in self._rivals():
            problems += rival.problems(self.protocol.subjects(), sources)
        return problems + self.protocol.problems(sources) + self.measured.problems(sources)

    def warnings(self) -> list[str]:
        subjects = self.protocol.subjects() if self.config.rivals else []
        return self.measured.warnings() + [line for rival in self._rivals() for line in rival.warnings(subjects)]

    def check_trained(self, model: Path) -> None:
        """Check a trained model, its base and the judges, before anything is drawn.

        Raises:
            InputError, ModelError: one of them cannot be loaded; one line per problem.
        """
        if self.config.judge is not None:
            self._check_judge(self.config.judge, self.protocol.subjects())
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
        measuring = self.measured.tflop((4 + len(c.rivals)) * pictures)
        spent, said = self._judge_spending(work.samples * pictures)
        return Estimate(
            work.above,
            usd=spent,
            tflop=work.samples * (pictures * (c.steps * 12 * unet + _rivals_tflop(c, pixels)) + measuring),
            stored_bytes=work.samples * ((4 + len(c.rivals)) * pictures * PNG_BYTES * pixels),
            memory=Memory(drawing + sizes.unet_bytes(base, c.dtype), "estimated"),  # and the Reference UNet
            assumptions=(sizes.ASSUMPTION, sizes.MEMORY_ASSUMPTION, MEASURES_ASSUMPTION, *said),
        )

    def _judge_spending(self, pictures: float) -> tuple[float, tuple[str, ...]]:
        """USD for judging `pictures` pictures per method, and what that is based on."""
        if (judge := self.config.judge) is None:
            return 0.0, ()
        requests = round(4 * pictures * len(QUESTIONS))  # the four methods
        # a question about the concept has two pictures
        spent = expected_spending(judge, requests, 1.5 * TOKENS_PER_PICTURE + PROMPT_TOKENS, requests)
        line = f"judge: {requests} requests, {spent['input_tokens']} prompt tokens of {judge.model!r}, no answer twice"
        return spent["cost_usd"] or 0.0, (line,)

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
        subjects = self.protocol.decodable_subjects()
        if self.config.judge is not None:
            self._check_judge(self.config.judge, subjects)

    def _check_judge(self, judge: JudgeConfig, subjects: Sequence[Subject]) -> None:
        from bootpig.stages.evaluate.judged import check_judge

        check_judge(judge, subjects, self.config.images_per_prompt)

    def setup(self) -> None:
        import torch  # noqa: F401 - the engine sets torch's number of threads only if torch is imported

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        assert data.result is not None
        parts = None if checkpoints is None else checkpoints.parts
        self.measure(data.result / "model", workdir, progress, checkpoints, data.earlier, parts)

    def measure(
        self,
        model: Path,
        workdir: Path,
        progress: Progress,
        checkpoints: Checkpoints | None = None,
        earlier: Earlier = no_earlier,
        parts: Parts | None = None,
    ) -> dict[str, Any]:
        """Evaluate a trained model and write the results to `workdir`. Memory use is independent of the number of
        pictures.

        Args:
            model: a folder written by `BootPIGPipeline.save_bootpig`.
            workdir: an empty folder.
            progress: progress callback.
            checkpoints: stores drawn pictures, so that they are not drawn again if the process is killed. None: not
                stored.
            earlier: finds finished evaluations, whose pictures and values are taken over where they are the same.
            parts: a folder of evaluate in the store in which the answers of `judge` are kept. None: there is no judge.

        Returns:
            The content of `metrics.json`. In other ranks than the first, nothing: they make their part of the pieces.

        Raises:
            InputError, ModelError: the subjects, the trained weights or a model cannot be used.
            FatalError: a method has no picture of a subject that is finite.
            RuntimeError: another rank has died.
        """
        from bootpig.models.devices import torch_device
        from bootpig.stages.evaluate.all_drawings import Evaluation
        from bootpig.stages.evaluate.benchmarks.cut_outs import cut_out_references, write_rows
        from bootpig.stages.evaluate.drawing import drawings
        from bootpig.stages.evaluate.judges import Judges
        from bootpig.stages.evaluate.measuring import Measuring
        from bootpig.stages.evaluate.output import write_results
        from bootpig.stages.evaluate.reuse import FACTS, find_finished, write_facts
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

        measured, names = self.measured, self.config.metrics
        judges = Judges(sources, measured.models)
        cut = None
        if self.config.benchmark is not None:
            kept_masks = None if checkpoints is None else checkpoints.kept("cut-outs")
            cut = cut_out_references(subjects, measured.segment(), kept_masks)
            write_rows(workdir, subjects, cut)
        drawn = Evaluation(
            self.config, self.config.dtype, model, base, sources, subjects, rows, self._rivals(), cut, device
        )
        finished = find_finished(earlier, rows, subjects)
        if finished is not None:
            references, pictures = finished.pictures(self.config.batch_size, workdir / "images", share, subjects)
        else:
            references, pictures = drawn.draw(workdir / "images", open_pieces, earlier, share, progress)

        total = len(pictures) * len(rows)
        if not share.rank:
            progress(total, total, "scores")
        lost = {method: drawn.not_finite for method, drawn in pictures.items()}
        scores = Scores(subjects, rows, list(pictures), lost, names)
        identities = measured.identities(sources)
        kept = [] if finished is None else finished.keep(scores, identities)
        with TemporaryDirectory(prefix="bootpig-") as scratch:
            work = Measuring(measured, judges, pictures, scores, share, open_pieces, device, Path(scratch))
            work.measure([name for name in names if name not in kept])
        if share.rank:
            return {}
        drawn.describe(workdir, pictures)
        metrics = scores.metrics(self.config.seed)
        if self.config.judge is not None:
            from bootpig.stages.evaluate.judged import judge_pictures

            assert parts is not None, "the answers of a judge need a store"
            metrics["judge"] = judge_pictures(
                self.config.judge,
                rows,
                {method: each.files for method, each in pictures.items()},
                lost,
                references,
                parts,
                workdir,
                self.config.seed,
                lambda done, wanted, text: progress(total, total, text or f"judge {done}/{wanted}"),
            )
        write_results(workdir, scores, references, metrics)
        write_facts(workdir / FACTS, scores, identities)
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


def _rivals_tflop(config: EvaluateConfig, pixels: float) -> float:
    """10^12 operations for one picture by each rival: two passes per step."""
    return sum(
        (config.steps if rival.steps is None else rival.steps)
        * 2
        * sizes.unet_tflop(rival.model or rival.base or "", pixels if rival.size is None else rival.size**2)
        for rival in config.rivals
    )
