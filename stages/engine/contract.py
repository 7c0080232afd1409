"""The base classes of stages, and what the engine passes to them: configs, samples, inputs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from bootpig.stages.engine.earlier import Earlier, no_earlier
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.engine.yaml_values import takes_numbers, words_of_choices
from bootpig.storage.parts import Parts
from bootpig.storage.root import holds_credentials
from bootpig.storage.secrets import mask

Status = Literal["ok", "rejected", "failed"]

SPEED: dict[str, Any] = {"affects": "speed"}
"""`Field(json_schema_extra=SPEED)`: the field changes only the speed, not the output. Not part of the fingerprint."""

EXTENT: dict[str, Any] = {"affects": "extent"}
"""The field changes how much data is made, not its content. Existing units stay valid when it is increased."""

ADDED: dict[str, Any] = {"added": True}
"""The field is younger than stores that exist, and its default means "as before". At its default it is not part of the
fingerprint, so that those stores stay valid."""

MODEL: dict[str, Any] = {"affects": "model"}
"""The field names a model. The fingerprint has the model's identity instead of this value."""


LONGEST_LINE = 1000
"""Maximum length of a line of an `InputError`, in characters."""


class InputError(ValueError):
    """The user's input cannot be used. One line: the field, the value, the fix. The command line exits with code 2."""

    def __init__(self, message: str) -> None:
        # text pasted into the wrong place can be long
        lines = (line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…" for line in message.split("\n"))
        super().__init__(mask("\n".join(lines)))


class FatalError(RuntimeError):
    """An error that all further samples would hit too (full disk, broken device). The unit is not committed."""


class Postponed(RuntimeError):
    """A unit cannot be made now, but nothing is wrong with it (a spending cap). It stays pending. One line."""


class Interrupted(SystemExit):
    """A reduce stage stopped on a signal, in all of its ranks, after it saved its progress. `code` is the exit status,
    128 + the signal number: 143 for SIGTERM, 130 for SIGINT."""


class StageConfig(BaseModel):
    """A stage's section of the YAML file. Fields state unit, bounds and whether they change the output."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _words_of_a_choice(cls, data: Any) -> Any:
        return words_of_choices(cls, data)

    @field_validator("*", mode="before")
    @classmethod
    def _without_credentials(cls, value: Any) -> Any:
        if isinstance(value, str) and holds_credentials(value):
            raise ValueError("holds credentials, which every record of a run would repeat; set them in the environment")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes True for 1, and YAML takes yes, on, no and off for truth values
        parts = value if isinstance(value, list | tuple) else [value]
        holds_truth = any(isinstance(part, bool) for part in parts)
        if holds_truth and takes_numbers(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("is a truth value to YAML; give a number")
        return value

    def changed(self, names: Iterable[str]) -> list[str]:
        """The fields among `names` whose value is not the default. Whether a field was set explicitly does not count,
        because Prefect's parameter form sets all of them."""
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in names}
        return sorted(name for name, default in defaults.items() if getattr(self, name) != default)

    def hashed(self) -> dict[str, Any]:
        """The fields that change the output, for the fingerprint. Nested configs likewise."""
        fields: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and "affects" in extra:
                continue
            value = getattr(self, name)
            if isinstance(extra, dict) and extra.get("added") and value == info.get_default(call_default_factory=True):
                continue
            if isinstance(value, tuple):
                value = [part.hashed() if isinstance(part, StageConfig) else part for part in value]
            fields[name] = value.hashed() if isinstance(value, StageConfig) else value
        return fields


@dataclass(frozen=True)
class Sample:
    """One sample on its way through a stage."""

    id: str
    unit: int
    meta: dict[str, Any] = field(default_factory=dict)
    """Values that later stages need (`caption`, `object`). Stored as `<id>.json` in the payload."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The other members of the payload by extension: `{"png": …}` is `<id>.png`."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The stage's own columns in the sample's row. Missing columns are null. Before it is processed: see `reads`."""
    status: Status = "ok"
    reason: str = ""
    message: str = ""
    """Written to the unit's log, not to the row."""
    beside: Mapping[str, Sample] = field(default_factory=dict)
    """Stage → this sample as made by that stage, for all upstreams but the first. Missing where it is not `ok`."""

    def ok(self, *, files: dict[str, bytes], meta: dict[str, Any] | None = None, **columns: Any) -> Sample:
        """This sample, processed. `files` replaces the members from upstream, `meta` is merged into the sample's."""
        return Sample(self.id, self.unit, {**self.meta, **(meta or {})}, files, columns)

    def rejected(self, reason: str, **columns: Any) -> Sample:
        """This sample, rejected for `reason`, one of the stage's `reasons`."""
        return Sample(self.id, self.unit, self.meta, {}, columns, "rejected", reason)

    def failed(self, reason: str, message: str = "", **columns: Any) -> Sample:
        """This sample, failed with an error that a retry may fix."""
        return Sample(self.id, self.unit, self.meta, {}, columns, "failed", reason, message)

    def renamed(self, id: str) -> Sample:
        return replace(self, id=id)


def sample_seed(seed: int, stage: str, sample_id: str, draw: int = 0) -> int:
    """The seed of a sample's draws in a stage: 63 bits of sha256 over (seed, stage, sample id, draw)."""
    digest = hashlib.sha256(f"{seed}/{stage}/{sample_id}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ModelIdentity(Protocol):
    """The identity of a model in a fingerprint, see `bootpig.models.pretrained`."""

    def as_json(self) -> dict[str, str]: ...


class Stage(ABC):
    """Base class of map and reduce stages. `config` is the stage's section of the YAML file, `seed` the run's seed."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Must be increased when the same input would give a different output. A golden test checks this."""
    upstream: ClassVar[tuple[str, ...]] = ()
    """The stages that it reads. A map stage gets its rows from the first. A source reads none. See `engine.graph`."""
    kept: ClassVar[bool] = False
    """Whether an engine makes the stage once, for all its threads, because it reads much. Others are made each time."""
    config_class: ClassVar[type[StageConfig]]

    def __init__(self, config: Any, seed: int) -> None:
        self.config = config
        self.seed = seed

    def models(self) -> Mapping[str, ModelIdentity]:
        """The identity of each model and folder that changes the output. Takes seconds and loads nothing.

        Raises:
            InputError: a model or folder is missing. The message names the field and the fix.
        """
        return {}

    def unhashed_models(self) -> Mapping[str, ModelIdentity]:
        """Models and folders that are needed but do not change the output, such as the judges of a training's curves.

        Raises:
            InputError: as in `models`.
        """
        return {}

    def check_models(self) -> list[str]:
        """Problems of its models that can be known without loading them, one line each.

        Called before a run, after `models` and `unhashed_models`, and after downloads. Reads configs and headers:
        seconds for SDXL.
        """
        return []

    def check_ready(self) -> None:  # noqa: B027 - most stages need only their models
        """Check what is needed only to make units or the result, such as an API key or the pixels of given pictures.

        Called before the first stage of a run starts, if this stage has something to make.

        Raises:
            InputError: something is missing or unusable; one line per problem.
        """

    def warnings(self) -> list[str]:
        """What users should know before a run and that does not stop it, one line each.

        Called before the first stage of a run starts, if this stage has something to make, and by `plan`.
        """
        return []

    def device(self) -> str:
        """The device of its models, as in a `device` setting. `cpu` for a stage without models."""
        return str(getattr(self.config, "device", "cpu"))

    def estimate(self, work: Workload) -> Estimate:
        """The expected cost of `work`. By default zero, for samples like those of the upstream. Loads nothing."""
        return Estimate(work.above)

    def setup(self) -> None:  # noqa: B027 - a stage without models has nothing to load
        """Load the models. Called once per process, before the first unit."""

    def teardown(self) -> None:  # noqa: B027
        """Free what `setup` loaded."""


Progress = Callable[[int, int, str], None]
"""`progress(done, total, text)`. May be called at any rate."""


@dataclass(frozen=True)
class SourceContext:
    """Information about the store and the run for a stage that draws or requests its samples. Most do not need it."""

    parts: Parts
    """The stage's folder."""
    units: range
    """The run's units."""
    force: bool
    """Whether a complete unit is rebuilt."""
    progress: Progress
    usage: dict[str, Any] = field(default_factory=dict)
    """Filled by the stage. Written to the unit's log."""


class MapStage(Stage):
    """Turns the `ok` samples of its first upstream's unit into the rows and the shard of the same unit.

    A source (`upstream = ()`) reads no upstream and implements `draw`.
    """

    columns: ClassVar[pa.Schema] = pa.schema([])
    """The stage's own columns, which follow id, unit, status and reason."""
    reads: ClassVar[tuple[str, ...]] = ()
    """The columns of the first upstream's rows that `process` finds in `Sample.columns`, where that stage has them."""
    optional_columns: ClassVar[pa.Schema] = pa.schema([])
    """Further columns, which a unit has only if one of its rows has a value."""
    reasons: ClassVar[Mapping[str, str]] = {}
    """Code → meaning. The `reason` of a row is one of these codes, or `error`."""
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Code of a rejected row → the stage's settings that decide about it, for messages."""

    @property
    def slice_size(self) -> int:
        """Samples per call of `process`. Slices of a unit are fixed, so that a retry runs the same batches."""
        return 1

    def batch_key(self, sample: Sample) -> Hashable:
        """A slice consists of samples with equal keys, such as the size of their pictures."""
        return None

    @abstractmethod
    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        """One result per sample, in order: `sample.ok(…)`, `sample.rejected(…)` or `sample.failed(…)`.

        An exception is attributed to one sample: the engine runs the slice again sample by sample to find it.
        `FatalError` and `InputError` end the unit.
        """

    def request(self, samples: Sequence[Sample], unit: int, context: SourceContext) -> list[Sample]:
        """Ask a service about the samples of a unit that `process` will get, all at once. Returns them in order.

        Called before the models are loaded. By default the samples are returned as they are.

        Raises:
            Postponed: the unit cannot be made now.
        """
        return list(samples)

    @property
    def sequential(self) -> bool:
        """Whether unit k depends on the units before it. Units then run one after the other."""
        return False

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        """The samples of one unit of a source, before `process`. `indices` are positions in the whole data set.

        Raises:
            Postponed: the unit cannot be made now.
        """
        raise TypeError(f"{self.name} is not a source")

    def source_digest(self, unit: int, indices: range) -> str:
        """For a source: a digest of what the unit depends on besides the config. Replaces the upstream digest."""
        return ""


@dataclass(frozen=True)
class UnitRef:
    """A unit that a reduce stage reads."""

    unit: int
    digest: str
    """Digest of the unit's marker, see `storage.parts`."""
    samples: int
    """Number of `ok` rows, which is the number of samples in the shard."""


def _no_rows(unit: int) -> list[dict[str, Any]]:
    raise LookupError(f"unit {unit}: no rows to read")


@dataclass(frozen=True)
class ReduceInput:
    """The input of a reduce stage from its first upstream. Those from other upstreams are in `beside`."""

    units: Sequence[UnitRef]
    """The complete units of a map stage, in order. Empty for a reduce stage."""
    shard: Callable[[int], bytes]
    """Reads a unit's shard and verifies its checksum. Raises `CorruptPart`."""
    result: Path | None
    """The result folder of a reduce stage."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the upstream that are part of its fingerprint."""
    rows: Callable[[int], list[dict[str, Any]]] = _no_rows
    """Reads a unit's rows, of any status."""
    columns: frozenset[str] = frozenset()
    """The columns of the upstream that its units have."""
    beside: Mapping[str, ReduceInput] = field(default_factory=dict)
    """Stage → its input, for all upstreams but the first."""
    run: str = ""
    """The id of the run, for what the stage tells others. It is not part of the result's identity."""
    earlier: Earlier = no_earlier
    """Finished results of the reduce stage itself with other settings. There are none after `--force`."""


class ReduceStage(Stage):
    """Reads a list of units and makes one folder."""

    identity_prefix: ClassVar[str] = ""
    """Only files of the result with this prefix count as input of later stages. Others, such as logs, do not."""

    log: ClassVar[str] = ""
    """A file of lines in the work folder that is copied to the store while the stage runs, see `engine.live`."""

    def processes(self) -> int:
        """Number of processes on this machine that run the stage together, as ranks of torch.distributed."""
        return 1

    @abstractmethod
    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        """Write the result to `workdir`, an empty local folder. The engine publishes it as a whole."""
