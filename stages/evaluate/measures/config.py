"""The settings of the measures, and the checks of their models before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import Field, field_validator, model_validator

from bootpig.models.pretrained.inspection import JudgeKind, judge_problems
from bootpig.models.pretrained.sizes import EMBEDDING_TFLOP
from bootpig.models.pretrained.source import JUDGE, TRANSFORMER, ModelSource
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.engine.contract import ADDED, MODEL
from bootpig.stages.engine.estimates import SampleShape, Workload
from bootpig.stages.engine.fields import ModelName, Revision
from bootpig.stages.evaluate.measures.names import DEFAULT, MASKED, MEASURES, features_of, in_order, unknown_measure
from bootpig.stages.evaluate.protocol import ProtocolConfig
from bootpig.stages.segment.cut_out import of_photos
from bootpig.stages.segment.stage import Segment, SegmentConfig
from bootpig.storage.fingerprint import digest

MODELS = ("clip", "dino", "dinov2", "siglip")
"""The models of measures, besides those that segment."""

SETTINGS = ("metrics", "segment", "judge")
"""Settings that decide what is measured, but not what is drawn."""


class MeasuresConfig(ProtocolConfig):
    """What is measured of the drawn pictures, and with which models."""

    metrics: tuple[str, ...] = Field(
        default=DEFAULT,
        min_length=1,
        json_schema_extra=ADDED,
        description=f"What is measured, see docs/evaluation.md: {', '.join(MEASURES)}. Another choice draws no picture "
        "again, and measures nothing twice.",
    )
    dinov2: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="A DINOv2 model for dinov2, such as facebook/dinov2-base. If given, identity uses it too.",
    )
    dinov2_revision: Revision = None
    siglip: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="A SigLIP or SigLIP 2 model for siglip_t and siglip_i, such as google/siglip2-base-patch16-224.",
    )
    siglip_revision: Revision = None
    segment: SegmentConfig | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="Models that find the subject for identity, background and the references of a benchmark. null: "
        "those of the segment stage.",
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_name(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in MEASURES]:
            raise ValueError(unknown_measure(unknown[0]))
        return in_order(names)

    @model_validator(mode="after")
    def _can_be_measured(self) -> MeasuresConfig:
        examples = {"dinov2": "facebook/dinov2-base", "siglip": "google/siglip2-base-patch16-224"}
        problems = [
            f"metrics: {', '.join(users)} → no model; set {model}, such as {example}"
            for model, example in examples.items()
            if getattr(self, model) is None
            and (users := [name for name in self.metrics if MEASURES[name].feature == model])
        ]
        if "diversity" in self.metrics and self.images_per_prompt < 2:
            problems.append(
                "metrics: diversity compares the pictures of a caption → needs images_per_prompt of at least 2, not "
                f"{self.images_per_prompt}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def needs_masks(self) -> bool:
        """Whether a measure needs the subject's mask."""
        return any(MEASURES[name].feature in MASKED for name in self.metrics)

    @property
    def parts_model(self) -> str:
        """The model whose patches identity compares: `dinov2` or `dino`."""
        return "dino" if self.dinov2 is None else "dinov2"


def encoders_of(config: MeasuresConfig) -> dict[str, tuple[str, ...]]:
    """Feature → the models that it needs, without those that segment, for the features of `config.metrics`."""
    own = {"identity": (config.parts_model,), "background": ("clip",)}
    return {feature: own.get(feature, (feature,)) for feature in features_of(config.metrics)}


class Measured:
    """The models of the measures of a configuration. Loads nothing."""

    def __init__(self, config: MeasuresConfig, section: str) -> None:
        """`section`: section of the configuration that has these settings, for messages."""
        self.config = config
        self.section = section
        self.encoders = encoders_of(config)
        self.models = tuple(name for name in MODELS if any(name in models for models in self.encoders.values()))
        """The names of all models that are used, without those that segment."""

    def tflop(self, pictures: int) -> float:
        """About how many 10^12 operations it takes to measure so many pictures."""
        embedded = pictures * sum(EMBEDDING_TFLOP[model] for models in self.encoders.values() for model in models)
        if not self.config.needs_masks:
            return embedded
        return embedded + self.segment().estimate(Workload(1, pictures, SampleShape())).tflop

    def lookups(self, protocol: Mapping[str, Callable[[], ModelSource]]) -> dict[str, Callable[[], ModelSource]]:
        """How the models are found, for `resolve_all`.

        Args:
            protocol: the lookups of the protocol, of which those of unused models are left out.
        """
        c, section = self.config, self.section
        found = {name: lookup for name, lookup in protocol.items() if name not in MODELS or name in self.models}
        if "dinov2" in self.models and (dinov2 := c.dinov2) is not None:
            found["dinov2"] = lambda: resolve(f"{section}.dinov2", dinov2, c.dinov2_revision, TRANSFORMER, JUDGE)
        if "siglip" in self.models and (siglip := c.siglip) is not None:
            found["siglip"] = lambda: resolve(f"{section}.siglip", siglip, c.siglip_revision, TRANSFORMER, JUDGE)
        return found

    def segmenters(self) -> dict[str, ModelSource]:
        """The models that segment, by `segment.<name>`; empty if no measure needs them."""
        if not self.config.needs_masks:
            return {}
        return {f"segment.{name}": source for name, source in self.segment().models().items()}

    def segment(self, device: str = "cpu") -> Segment:
        """The segment stage, to find subjects on `device`. Its filters for training data, border and area, are off."""
        assert self.config.segment is not None, "PipelineConfig.section fills it in"
        return Segment(of_photos(self.config.segment).model_copy(update={"device": device}), seed=0)

    def problems(self, sources: Mapping[str, ModelSource]) -> list[str]:
        """What would prevent the models from being loaded, one line each, without reading weights.

        `clip` and `dino` are checked by the protocol; here only whether their patches can be read.
        """
        kinds: dict[str, JudgeKind] = {"siglip": "siglip", "dinov2": "dino"}
        if "identity" in self.encoders:
            kinds[self.config.parts_model] = "patches"
        found = [
            line for name, kind in kinds.items() if name in sources for line in judge_problems(sources[name], kind)
        ]
        return found + (self.segment().check_models() if self.config.needs_masks else [])

    def warnings(self) -> list[str]:
        """Models that no measure uses, one line each."""
        given = {"dinov2": self.config.dinov2, "siglip": self.config.siglip}
        return [
            f"{self.section}.{name}: {value!r} has no effect, because no metric uses it; add one to "
            f"{self.section}.metrics"
            for name, value in given.items()
            if value is not None and name not in self.models
        ]

    def identities(self, sources: Mapping[str, ModelSource]) -> dict[str, str]:
        """Measure → digest of what decides its values, besides the pictures."""
        found = {}
        for name in self.config.metrics:
            feature = MEASURES[name].feature
            used = {model: sources[model].as_json() for model in self.encoders[feature]}
            settings: dict[str, object] = {}
            if feature in MASKED:
                used |= {model: source.as_json() for model, source in self.segmenters().items()}
                settings = self.segment().config.hashed()
            found[name] = digest(
                {"measure": name, "version": MEASURES[name].version, "models": used, "segment": settings}
            )
        return found


def drawn_by(identity: Mapping[str, object]) -> dict[str, object]:
    """The part of an evaluation's identity that decides its pictures, without what decides only what is measured."""
    config, models = identity["config"], identity["models"]
    assert isinstance(config, Mapping) and isinstance(models, Mapping)
    cut = config.get("benchmark") is not None  # its references are cut out by the models of segment
    settings = [name for name in SETTINGS if name != "segment" or not cut]
    return {
        **identity,
        "config": {name: value for name, value in config.items() if name not in settings},
        "models": {
            name: value
            for name, value in models.items()
            if name not in (*MODELS, "ratings") and (cut or not name.startswith("segment."))
        },
    }
