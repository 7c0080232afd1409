"""The contract of a stage: its config, its samples, and the one method that a subclass implements."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from bootpig.storage.parts import Parts
from bootpig.storage.root import holds_credentials
from bootpig.storage.secrets import mask

Status = Literal["ok", "rejected", "failed"]

SPEED: dict[str, Any] = {"affects": "speed"}
"""`Field(json_schema_extra=SPEED)`: changes how fast a stage runs, never its output. Not part of the fingerprint."""

EXTENT: dict[str, Any] = {"affects": "extent"}
"""Changes how much is made, not what. Increasing it keeps every unit that is already made."""

MODEL: dict[str, Any] = {"affects": "model"}
"""Names a model. The fingerprint holds the model's identity instead of this value."""


LONGEST_LINE = 1000
"""Characters of a line of an `InputError`."""


class InputError(ValueError):
    """The user's input cannot be used. One line: the field, the value, the fix. The command line exits with 2."""

    def __init__(self, message: str) -> None:
        # what is pasted into a wrong place may be long
        lines = (line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…" for line in message.split("\n"))
        super().__init__(mask("\n".join(lines)))


class FatalError(RuntimeError):
    """An error that every further sample would hit too (full disk, broken device). The unit is not committed."""


class Postponed(RuntimeError):
    """A unit cannot be made now, although nothing is wrong with it (a spending cap). It stays pending. One line."""


_YAML_WORDS = {False: ("no", "off", "false", "n"), True: ("yes", "on", "true", "y")}
"""What YAML reads as a truth value."""


def words_of_choices(model: type[BaseModel], data: Any) -> Any:
    """`data` with the word meant where YAML has read one of a choice, such as `no`, as a truth value."""
    if not isinstance(data, dict):
        return data
    meant = dict(data)
    for name, value in data.items():
        if isinstance(value, bool) and name in model.model_fields:
            annotation = model.model_fields[name].annotation
            choices = {choice for part in (annotation, *get_args(annotation)) for choice in get_args(part)}
            word = next((word for word in _YAML_WORDS[value] if word in choices), None)
            if word is not None and bool not in (annotation, *get_args(annotation)):
                meant[name] = word
    return meant


def _takes_numbers(annotation: Any) -> bool:
    """Whether a field of this type takes numbers, alone or in a list, and no truth values."""
    kinds, pending = set(), [annotation]
    while pending:
        kind = pending.pop()
        kinds.add(kind)
        pending += get_args(kind) if get_origin(kind) is not Literal else ()
    return bool(kinds & {int, float}) and not kinds & {bool, Any}


class StageConfig(BaseModel):
    """A stage's section of the YAML file. Fields state their unit, bounds, and whether they change the output."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _words_of_a_choice(cls, data: Any) -> Any:
        return words_of_choices(cls, data)

    @field_validator("*", mode="before")
    @classmethod
    def _without_credentials(cls, value: Any) -> Any:
        if isinstance(value, str) and holds_credentials(value):
            raise ValueError(
                "holds credentials, which every record of a run would repeat; give them in the environment"
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes True for 1, and YAML takes yes, on, no and off for truth values
        parts = value if isinstance(value, list | tuple) else [value]
        holds_truth = any(isinstance(part, bool) for part in parts)
        if holds_truth and _takes_numbers(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("is a truth value to YAML; give a number")
        return value

    def changed(self, names: Iterable[str]) -> list[str]:
        """The fields among `names` whose value is not the default. Whether a field was set explicitly says nothing:
        a form of parameters sets all of them.
        """
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in names}
        return sorted(name for name, default in defaults.items() if getattr(self, name) != default)

    def hashed(self) -> dict[str, Any]:
        """The fields that change the output, as the fingerprint holds them. Nested configs likewise."""
        fields: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and "affects" in extra:
                continue
            value = getattr(self, name)
            fields[name] = value.hashed() if isinstance(value, StageConfig) else value
        return fields


@dataclass(frozen=True)
class Sample:
    """One sample, as it passes through a stage."""

    id: str
    unit: int
    meta: dict[str, Any] = field(default_factory=dict)
    """What later stages need (`caption`, `object`). The payload's `<id>.json`."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The payload's other members, by extension: `{"png": …}` is `<id>.png`."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The stage's own columns of the sample's row. A missing column is null."""
    status: Status = "ok"
    reason: str = ""
    message: str = ""
    """Written to the unit's log, never to the row."""
    beside: Mapping[str, Sample] = field(default_factory=dict)
    """Stage → the same sample as a further upstream made it. One that is not `ok` there is missing."""

    def ok(self, *, files: dict[str, bytes], meta: dict[str, Any] | None = None, **columns: Any) -> Sample:
        """This sample, processed. `files` replaces the upstream members; `meta` is merged into the upstream meta."""
        return Sample(self.id, self.unit, {**self.meta, **(meta or {})}, files, columns)

    def rejected(self, reason: str, **columns: Any) -> Sample:
        """This sample, rejected for `reason`, one of the stage's `reasons`."""
        return Sample(self.id, self.unit, self.meta, {}, columns, "rejected", reason)

    def failed(self, reason: str, message: str = "", **columns: Any) -> Sample:
        """This sample, lost to an error that a retry may fix."""
        return Sample(self.id, self.unit, self.meta, {}, columns, "failed", reason, message)

    def renamed(self, id: str) -> Sample:
        return replace(self, id=id)


def sample_seed(seed: int, stage: str, sample_id: str, draw: int = 0) -> int:
    """The seed of a sample's draws in a stage: 63 bits of sha256 over (seed, stage, sample id, draw)."""
    digest = hashlib.sha256(f"{seed}/{stage}/{sample_id}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ModelIdentity(Protocol):
    """What a fingerprint holds for a model, see `bootpig.models.pretrained`."""

    def as_json(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class SampleShape:
    """What a stage's samples are expected to hold, as far as the costs of the stages below depend on it."""

    pixels: float = 0.0
    """Of a picture, height times width; 0 while there is none."""
    references: int = 1
    base: str = ""
    """The base model that encodes the pictures or is trained on them, as the config names it."""


@dataclass(frozen=True)
class Workload:
    """What a stage has still to make."""

    units: int
    """Units of a map stage; 1 for the result of a reduce stage, 0 if it is there."""
    samples: int
    """In all these units; of a reduce stage its results."""
    above: SampleShape
    """The samples of its first upstream."""


@dataclass(frozen=True)
class Estimate:
    """What a `Workload` is expected to take, before anything is measured. `plan` adds these up."""

    shape: SampleShape
    """The stage's own samples."""
    tflop: float = 0.0
    """Operations, in 10^12."""
    stored_bytes: float = 0.0
    """Left in the store."""
    usd: float = 0.0
    """What others charge; the price of a GPU comes on top."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further figures for `plan --json`, by name."""
    assumptions: tuple[str, ...] = ()
    """What the figures are based on, a line each. Stages may repeat each other's."""


class Stage(ABC):
    """Base of map and reduce stages. `config` is the stage's section of the YAML file, `seed` the run's seed."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Increased whenever the same input would give a different output. A golden test guards it."""
    upstream: ClassVar[tuple[str, ...]] = ()
    """The stages it reads. The first gives a map stage its rows; a source reads none. See `engine.graph`."""
    config_class: ClassVar[type[StageConfig]]

    def __init__(self, config: Any, seed: int) -> None:
        self.config = config
        self.seed = seed

    def models(self) -> Mapping[str, ModelIdentity]:
        """The identity of each model and folder that changes the output. Takes seconds; nothing is loaded.

        Raises:
            InputError: one is missing. The message names the field and the fix.
        """
        return {}

    def check_ready(self) -> None:  # noqa: B027 - most stages need nothing but their models
        """Check what making units needs and looking at them does not: a key, the pixels of given pictures.

        Called before any stage of a run works, if this one has something to make.

        Raises:
            InputError: something is missing or unusable; one line per problem.
        """

    def device(self) -> str:
        """Where its models run, as in a `device` setting; `cpu` for a stage without models."""
        return str(getattr(self.config, "device", "cpu"))

    def estimate(self, work: Workload) -> Estimate:
        """What making `work` is expected to take. By default nothing, of samples like those above. Loads nothing."""
        return Estimate(work.above)

    def setup(self) -> None:  # noqa: B027 - a stage without models has nothing to load
        """Load the models. Called once per process, before the first unit."""

    def teardown(self) -> None:  # noqa: B027
        """Free what `setup` loaded."""


Progress = Callable[[int, int, str], None]
"""`progress(done, total, text)`: may be called at any rate; the engine displays it."""


@dataclass(frozen=True)
class SourceContext:
    """What a source can see of the store and the run. Most sources need none of it."""

    parts: Parts
    """The stage's folder."""
    units: range
    """The run's units."""
    force: bool
    """Make the unit again even if it is complete."""
    progress: Progress
    usage: dict[str, Any] = field(default_factory=dict)
    """The source's entries here are written to the unit's log."""


class MapStage(Stage):
    """Turns the `ok` samples of its first upstream's unit into the rows and the shard of the same unit.

    A source (`upstream = ()`) implements `draw` in place of reading a unit above.
    """

    columns: ClassVar[pa.Schema] = pa.schema([])
    """The stage's own columns, after id, unit, status and reason."""
    reasons: ClassVar[Mapping[str, str]] = {}
    """Code → what it means. A row's `reason` is one of these, or `error`."""

    @property
    def slice_size(self) -> int:
        """Samples per call of `process`. Slices of a unit are fixed, so that a retry sees the same batches."""
        return 1

    @abstractmethod
    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        """One result per sample, in order: `sample.ok(…)`, `sample.rejected(…)` or `sample.failed(…)`.

        An exception is taken for the fault of one sample: the engine runs the slice again sample by sample to find it.
        `FatalError` and `InputError` end the unit.
        """

    @property
    def sequential(self) -> bool:
        """Whether unit k depends on the units before it, so that units run one after the other."""
        return False

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        """A source's samples of one unit, before `process`. `indices` are positions in the whole data set.

        Raises:
            Postponed: the unit cannot be made now.
        """
        raise TypeError(f"{self.name} is not a source")

    def source_digest(self, unit: int, indices: range) -> str:
        """For a source, in place of the upstream marker's digest: what its unit depends on besides the config."""
        return ""


@dataclass(frozen=True)
class UnitRef:
    """One unit that a reduce stage reads."""

    unit: int
    digest: str
    """Digest of its marker, see `storage.parts`."""
    samples: int
    """Its `ok` rows, the samples of its shard."""


class Pieces(Protocol):
    """Pieces of a result that is under way, by names of letters, digits, `-` and `_`."""

    def put(self, name: str, data: bytes) -> None:
        """Store a piece."""

    def get(self, name: str) -> bytes | None:
        """A piece as it was put, every byte checked; None where there is none, or it is damaged."""


class Checkpoints(Protocol):
    """Where a reduce stage saves its progress: under its fingerprint, whole folders only, manifest last."""

    def save(self, step: int, folder: Path) -> None:
        """Publish `folder` as `checkpoint-<step>`, then remove all but the last two."""

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint as (step, local folder), or None. Damaged ones are skipped with a message."""

    def pieces(self, key: str) -> Pieces:
        """What earlier runs have left of this result, and where this run leaves its own. Gone once it is published.

        Args:
            key: digest of what changes the pieces and is not part of the fingerprint, such as the batch size. Pieces
                of any other key are removed.
        """


def _no_rows(unit: int) -> list[dict[str, Any]]:
    raise LookupError(f"unit {unit}: there are no rows to read")


@dataclass(frozen=True)
class ReduceInput:
    """What a reduce stage reads of its first upstream; what it reads of the others is in `beside`."""

    units: Sequence[UnitRef]
    """The complete units of a map stage, in order; empty for a reduce stage."""
    shard: Callable[[int], bytes]
    """A unit's shard, its checksum verified. Raises `CorruptPart`."""
    result: Path | None
    """The result folder of a reduce stage."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the upstream that are part of its fingerprint."""
    rows: Callable[[int], list[dict[str, Any]]] = _no_rows
    """A unit's rows, whatever their status."""
    beside: Mapping[str, ReduceInput] = field(default_factory=dict)
    """Stage → likewise, for each further upstream."""


class ReduceStage(Stage):
    """Reads a list of units and makes one folder."""

    identity_prefix: ClassVar[str] = ""
    """Only the result's files under this prefix change what is made from it. Logs beside them do not."""

    @abstractmethod
    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        """Write the result into `workdir` (empty, local). The engine publishes it whole."""
