"""The configuration of a run. One YAML file is one `PipelineConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bootpig.stages.augment import AugmentConfig
from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.encode import EncodeConfig
from bootpig.stages.engine.contract import EXTENT, SPEED, StageConfig
from bootpig.stages.evaluate.stage import EvaluateConfig
from bootpig.stages.real_pictures.config import PicturesConfig
from bootpig.stages.score.config import ScoreConfig
from bootpig.stages.segment.stage import SegmentConfig
from bootpig.stages.select.config import SelectConfig
from bootpig.stages.synthesize.config import SynthesizeConfig
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.subjects import shared_problems
from bootpig.stages.view.config import ViewConfig

MOST_UNITS = 1_000_000
"""Of a run. Each is listed, and named in the run's record."""


class PipelineConfig(StageConfig):
    """The content of one YAML file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", json_schema_extra=SPEED, description="Name of the run.")
    root: str = Field(
        default="./data", min_length=1, json_schema_extra=SPEED, description="The store: a folder or an fsspec URL."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of all random draws for the data set.")
    unit_size: int = Field(default=1000, ge=1, le=100_000, description="Samples per unit, and so per shard of a stage.")
    max_failed: float = Field(
        default=0.05,
        ge=0,
        le=1,
        json_schema_extra=SPEED,
        description="Fraction of failed rows above which a unit fails.",
    )
    max_rejected: float = Field(
        default=0.999,
        ge=0,
        le=1,
        json_schema_extra=SPEED,
        description="Fraction of rejected rows in the first units of a stage above which the run stops. 1: never.",
    )
    min_yield: float = Field(
        default=0.3,
        ge=0,
        le=1,
        json_schema_extra=EXTENT,
        description="Fraction of the captions or given pictures that must be encoded, and selected where there is a "
        "selection; else the run stops before train.",
    )
    train_on_partial: bool = Field(
        default=False,
        json_schema_extra=EXTENT,
        description="Train even if some units are not complete. Once they are complete, the model is trained again.",
    )
    threads: int = Field(
        default=2, ge=1, le=512, json_schema_extra=SPEED, description="CPU threads of torch per process."
    )
    workers: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Units that run at the same time. auto: one with threads, else one for each GPU of this machine.",
    )
    runner: Literal["auto", "threads", "processes", "ray", "dask"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Where units run: in this process, in other processes, or on a Ray or Dask cluster. auto: in one "
        "process for each GPU if the stage can use several, else in this process.",
    )
    runner_address: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=SPEED,
        description="Address of a running cluster, such as ray://head:10001 or tcp://scheduler:8786. null: the run "
        "starts its own.",
    )
    caption: CaptionConfig | None = None
    synthesize: SynthesizeConfig | None = None
    pictures: PicturesConfig | None = Field(
        default=None, description="Real pictures, in place of caption and synthesize."
    )
    segment: SegmentConfig
    view: ViewConfig | None = None
    score: ScoreConfig | None = None
    select: SelectConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    encode: EncodeConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _one_source(self) -> PipelineConfig:
        drawn = {"caption": self.caption, "synthesize": self.synthesize}
        if self.pictures is not None:
            if given := [name for name, section in drawn.items() if section is not None]:
                raise ValueError(
                    f"pictures: takes the place of caption and synthesize; remove it, or remove {' and '.join(given)}"
                )
        elif missing := [name for name, section in drawn.items() if section is None]:
            raise ValueError(f"{' and '.join(missing)}: missing → must be given, or pictures in place of both")
        return self

    @model_validator(mode="after")
    def _one_base(self) -> PipelineConfig:
        encode, train = (self.encode.model, self.encode.revision), (self.train.model, self.train.revision)
        if encode != train:
            raise ValueError(
                f"encode.model {encode[0]!r} is not train.model {train[0]!r} (or their revisions differ); "
                "training needs the latents of the same model, so set both to the same value"
            )
        return self

    @model_validator(mode="after")
    def _enough_references(self) -> PipelineConfig:
        stored = self.augment.references if self.augment.enabled else 1
        if self.train.references_per_sample[1] > stored:
            raise ValueError(
                f"train.references_per_sample: {list(self.train.references_per_sample)} is more than the {stored} of "
                "a sample that augment makes; lower it, or raise augment.references"
            )
        return self

    @model_validator(mode="after")
    def _squares_keep_their_size(self) -> PipelineConfig:
        side, sizes = self.augment.size, () if self.synthesize is None else self.synthesize.stored
        resized = [list(size) for size in sizes if size[0] == size[1] != side]
        if side is not None and len(sizes) > 1 and resized:
            raise ValueError(
                f"augment.size: {side} would make the {resized[0]} pictures of synthesize.sizes {side}x{side}; set it "
                f"to null, or remove {resized[0]} from sizes"
            )
        return self

    @model_validator(mode="after")
    def _views_are_drawn_and_used(self) -> PipelineConfig:
        used = self.augment.references_from
        if self.view is None and used != "cut_out":
            raise ValueError(f"augment.references_from: {used!r} needs the stage view; add view, or use cut_out")
        if self.view is not None and used == "cut_out":
            raise ValueError("view: has no effect while augment.references_from is cut_out; set it to views or both")
        scenes = 0 if self.caption is None else self.caption.other_scenes
        if self.view is not None and self.caption is None:
            raise ValueError("view: needs other scenes, which only the stage caption gives; remove it")
        if self.view is not None and scenes < self.view.count:
            raise ValueError(
                f"view.count: {self.view.count} needs as many other scenes, but caption.other_scenes is {scenes}; set "
                f"it to {self.view.count}"
            )
        return self

    @model_validator(mode="after")
    def _scores_that_are_made(self) -> PipelineConfig:
        if self.select is None:
            return self
        if self.score is None:
            raise ValueError("select: reads scores, but there is no score section; add one, such as `score: {}`")
        problems = []
        for name, limit in self.select.limits().items():
            score = name.split("_", 1)[1]
            if score == "view_identity" and self.view is None:
                problems.append(f"select.{name}: {limit} → there are no views; add the stage view, or remove it")
            lacking = self.score.lacks(score)
            if lacking is not None:
                problems.append(f"select.{name}: {limit} → no stage makes it; set score.{lacking}, or remove it")
        embedding = self.select.similarity
        if self.select.max_similarity is not None and self.score.lacks(embedding) is not None:
            problems.append(
                f"select.similarity: {embedding!r} → no stage makes it; set score.{embedding}, or choose another"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _not_too_many_units(self) -> PipelineConfig:
        if len(self.unit_numbers()) > MOST_UNITS:
            raise ValueError(
                f"unit_size: {self.unit_size} makes {len(self.unit_numbers())} units of {self.source}.count "
                f"{self.count}; a run has at most {MOST_UNITS}, so raise unit_size"
            )
        return self

    @model_validator(mode="after")
    def _cluster_of_the_runner(self) -> PipelineConfig:
        if self.runner_address is not None and self.runner not in ("ray", "dask"):
            raise ValueError(
                f"runner_address: {self.runner_address!r} has no effect while runner is {self.runner}; "
                "set runner to ray or dask, or remove it"
            )
        return self

    def section(self, stage: str) -> Any:
        """The settings of a stage, with those that it takes over from other stages where it has none of its own."""
        if stage == "view" and self.view is not None and self.view.segment is None:
            return self.view.model_copy(update={"segment": self.segment})
        if stage == "evaluate" and self.evaluate.needs_segment and self.evaluate.segment is None:
            return self.evaluate.model_copy(update={"segment": self.segment})
        return getattr(self, stage)

    def pinned(self, pins: Mapping[str, Mapping[str, str]]) -> PipelineConfig:
        """A copy with other revisions, given as stage → field → commit. The field `a.b` is the field b of a.
        encode and train always get the same one."""
        pins = {stage: dict(fields) for stage, fields in pins.items()}
        for name, other in (("encode", "train"), ("train", "encode")):
            if "revision" in pins.get(name, {}):
                pins[other] = {**pins.get(other, {}), "revision": pins[name]["revision"]}
        copies = {stage: _pinned(getattr(self, stage), fields) for stage, fields in pins.items()}
        return self.model_copy(update=copies)

    def conflicts(self, stage: str) -> list[str]:
        """What in the folders that a stage names does not go with those of other stages, one line each."""
        if stage != "train" or self.train.evaluate_every is None or self.train.evaluation is None:
            return []
        return shared_problems(self.train.evaluation, self.evaluate.subjects)

    @property
    def source(self) -> Literal["caption", "pictures"]:
        """The stage that all others depend on."""
        return "caption" if self.pictures is None else "pictures"

    @property
    def count(self) -> int:
        """The number of samples that are asked for."""
        section = self.caption or self.pictures
        assert section is not None
        return section.count

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """The endpoints that write the captions, draw the pictures, rate and judge them, as far as there are any."""
        sections = (self.caption, self.pictures, self.synthesize)
        rubric = None if self.score is None else self.score.rubric
        found = (*(section.openai for section in sections if section is not None), rubric, self.evaluate.judge)
        return tuple(endpoint for endpoint in found if endpoint is not None)

    def unit_numbers(self) -> range:
        """The units of this run. The last one is full too, so `count` is rounded up to whole units."""
        return range(-(-self.count // self.unit_size))

    def indices(self, unit: int) -> range:
        """The positions of a unit's samples in the whole data set."""
        return range(unit * self.unit_size, (unit + 1) * self.unit_size)


def _pinned(section: StageConfig, pins: Mapping[str, str]) -> StageConfig:
    """A copy with other revisions. A name such as `segment.detector_revision` is of a section within this one, and one
    such as `rivals.0.revision` of a section in a list; where that is null, another stage has the revision."""
    known: dict[str, Any] = {name: value for name, value in pins.items() if name in type(section).model_fields}
    for name, value in pins.items():
        inner, _, field = name.partition(".")
        below = known.get(inner, getattr(section, inner, None))
        if field and isinstance(below, StageConfig):
            known[inner] = below.model_copy(update={field: value})
        elif field and isinstance(below, tuple):
            place, _, field = field.partition(".")
            parts = list(below)
            parts[int(place)] = parts[int(place)].model_copy(update={field: value})
            known[inner] = tuple(parts)
    return section.model_copy(update=known)
