"""The settings of the DreamBooth protocol, and the checks of its subjects and judges before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bootpig.models.pipelines.base_rules import SCHEDULERS, scheduler_rule
from bootpig.models.pretrained.inspection import judge_problems
from bootpig.models.pretrained.source import JUDGE, TRANSFORMER, ModelSource, local_path
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.engine.contract import ADDED, MODEL, InputError, StageConfig
from bootpig.stages.engine.fields import BatchSize, ModelName, Revision, Scheduler
from bootpig.stages.evaluate.prompts import OBJECT
from bootpig.stages.evaluate.subjects import Benchmark, Subject, benchmark_subjects, read_subjects, unusable_pictures
from bootpig.stages.sampling import Sampling

SHOWN_PROBLEMS = 20
"""Maximum number of lines about unusable pictures. For more, their number is shown."""


class ProtocolConfig(StageConfig):
    """Which subjects are drawn, how, and which models judge the pictures."""

    clip: ModelName = Field(default="openai/clip-vit-base-patch32", description="A CLIPModel, for clip_t and clip_i.")
    clip_revision: Revision = None
    dino: ModelName = Field(default="facebook/dino-vits16", description="A ViT whose class token gives dino.")
    dino_revision: Revision = None
    subjects: str = Field(
        min_length=1,
        json_schema_extra=MODEL,
        description="Folder in DreamBooth layout: <subject>/00.png (the reference), …; see stages/evaluate/subjects.py",
    )
    prompts: tuple[str, ...] = Field(
        default=(),
        description="Captions for subjects without captions in subjects.yaml. {object} is the subject's class.",
    )
    references: Annotated[int, Field(ge=1, le=16)] | Literal["all"] = Field(
        default=1,
        description="Number of a subject's pictures, the first by name, that are references and not compared with. "
        "all: every picture is a reference and is also compared with, as in the paper's table.",
    )
    compared: int | None = Field(
        default=None,
        ge=2,
        json_schema_extra=ADDED,
        description="Number of a subject's pictures, the last by name, that drawn pictures are compared with, so that "
        "results with different numbers of references are comparable. null: all that are not references.",
    )
    images_per_prompt: int = Field(default=4, ge=1, le=100, description="Pictures per caption and method.")
    scheduler: Scheduler = None
    steps: int = Field(default=50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(default=7.5, ge=0, le=100, description="Text guidance scale, eta_text+im of eq. 4.")
    reference_guidance_scale: float = Field(
        default=5.0, ge=0, le=100, description="Reference guidance scale, eta_im of eq. 4."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**62, description="Seed of the noise and the bootstrap. Independent of the data's seed."
    )
    batch_size: BatchSize = 16

    @field_validator("prompts")
    @classmethod
    def _name_the_object(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if missing := [prompt for prompt in prompts if OBJECT not in prompt]:
            raise ValueError(f"{missing[0]!r} has no {OBJECT}; insert it in place of the subject's class")
        return prompts

    def sampling(self) -> Sampling:
        """How pictures are drawn."""
        return Sampling(self.steps, self.guidance_scale, self.reference_guidance_scale, self.batch_size)


class Protocol:
    """The subjects and judges that a configuration names. Loads no model."""

    def __init__(self, config: ProtocolConfig, section: str, benchmark: Benchmark | None = None) -> None:
        """
        Args:
            section: section of the configuration that has these settings, for messages.
            benchmark: which published benchmark the subjects are. None: a folder of subjects.
        """
        self.config = config
        self.section = section
        self.benchmark = benchmark

    def lookups(self) -> dict[str, Callable[[], ModelSource]]:
        """How `clip`, `dino` and `subjects` are found, for `resolve_all`."""
        c, section = self.config, self.section
        return {
            "clip": lambda: resolve(f"{section}.clip", c.clip, c.clip_revision, TRANSFORMER, JUDGE),
            "dino": lambda: resolve(f"{section}.dino", c.dino, c.dino_revision, TRANSFORMER, JUDGE),
            "subjects": self._subjects_source,
        }

    def problems(self, sources: Mapping[str, ModelSource]) -> list[str]:
        """What would prevent a drawing or a judgement, one line each, without reading weights."""
        problems = []
        if (name := self.config.scheduler) is not None and (reason := scheduler_rule(name, {})) is not None:
            problems.append(f"{self.section}.scheduler: {name}: {reason}; use one of {', '.join(SCHEDULERS)}")
        problems += judge_problems(sources["clip"], "clip") if "clip" in sources else []
        return problems + (judge_problems(sources["dino"], "dino") if "dino" in sources else [])

    def subjects(self) -> list[Subject]:
        """Read the folder of subjects. Opens no pictures.

        Raises:
            InputError: the folder is missing or cannot be used.
        """
        folder = local_path(self.config.subjects)
        if folder is None or not folder.is_dir():
            raise InputError(
                f"{self.section}.subjects: there is no folder {self.config.subjects!r}; give one with "
                "<subject>/00.png, …"
            )
        if self.benchmark is not None:
            return benchmark_subjects(folder, self.benchmark, self.config.references, self.section)
        return read_subjects(folder, self.config.prompts, self.config.references, self.section, self.config.compared)

    def decodable_subjects(self) -> list[Subject]:
        """The same, after decoding every picture.

        Raises:
            InputError: the folder or a picture cannot be used; one line per picture.
        """
        subjects = self.subjects()
        if problems := unusable_pictures(subjects):
            hidden = len(problems) - SHOWN_PROBLEMS
            more = [f"{self.section}.subjects: {hidden} more pictures cannot be used"] if hidden > 0 else []
            raise InputError("\n".join(problems[:SHOWN_PROBLEMS] + more))
        return subjects

    def _subjects_source(self) -> ModelSource:
        self.subjects()
        return resolve(f"{self.section}.subjects", self.config.subjects)
