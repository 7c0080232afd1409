"""The file of a sweep: a base configuration, the cells to compare, seeds, and what to report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, ValidationError, field_validator

from bootpig.flows.loading import problem_lines, shipped_configs
from bootpig.stages.engine.contract import InputError, StageConfig
from bootpig.stages.evaluate.measures.names import MEASURES, unknown_measure
from bootpig.stages.text_files import parse_yaml, read_text

CellName = Annotated[str, Field(min_length=1, max_length=100, description="Any text, different for each cell.")]
Settings = dict[str, Any]
"""Dotted field → value, as `--set` takes them: `train.steps: 100`. A section is replaced as a whole."""


class SweepCell(StageConfig):
    """Settings on top of the base, under a name."""

    name: CellName
    set: Settings = Field(
        default={}, description="Settings on top of the base: dotted field → value. Empty: the base as it is."
    )

    @field_validator("name")
    @classmethod
    def _not_blank(cls, name: str) -> str:
        if name != " ".join(name.split()) or not name.isprintable():
            raise ValueError("has blanks at an end, several in a row, or invisible characters; remove them")
        return name


class SweepBaseline(StageConfig):
    """The cell that all others are compared with."""

    name: CellName | None = Field(default=None, description="A name in `cells`. null: of any.")
    set: Settings = Field(
        default={},
        description="Values of fields in `grid`. A field that is left out has the value of the cell that is compared.",
    )


class SweepFile(StageConfig):
    """The content of one YAML file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60, description="Name of the sweep: letters, digits and dashes."
    )
    base: str = Field(
        min_length=1,
        description="The configuration that all cells start from: a YAML file, or the name of a shipped one. A path is "
        "relative to the current folder, or else to the folder of the sweep's file.",
    )
    root: str | None = Field(default=None, min_length=1, description="The store of all runs. null: that of the base.")
    cells: tuple[SweepCell, ...] = Field(default=(), description="What is compared: settings under a name.")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={},
        description="Dotted field → values. Every combination is a cell, of each of `cells` if both are given. A field "
        "with one value is a setting of all cells.",
    )
    seeds: dict[str, Annotated[list[StrictInt], Field(min_length=1)]] = Field(
        default={},
        description="Dotted field of a seed → values. A cell is run once with each; several fields change together.",
    )
    baseline: CellName | SweepBaseline | None = Field(
        default=None, description="The cell that the others are compared with, by subject and seed. null: none."
    )
    report: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Measures in the table, of those in evaluate.metrics. null: all that any cell measures.",
    )

    @field_validator("baseline", mode="before")
    @classmethod
    def _name_or_settings(cls, baseline: Any) -> Any:
        if not isinstance(baseline, str | Mapping | SweepBaseline | None):
            raise ValueError("must be the name of a cell, or have `name` and `set`")
        return baseline

    @field_validator("report")
    @classmethod
    def _measured(cls, report: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if report is None:
            return None
        if unknown := [name for name in report if name not in MEASURES]:
            raise ValueError(unknown_measure(unknown[0]))
        if len(set(report)) < len(report):
            raise ValueError("a measure is given twice; remove one")
        return report

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: dict[str, list[int]]) -> dict[str, list[int]]:
        for field, values in seeds.items():
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(
                    f"{field} has the seed {twice[0]} twice; the same run would count twice, so remove one"
                )
        if len({len(values) for values in seeds.values()}) > 1:
            counts = ", ".join(f"{field} has {len(values)}" for field, values in seeds.items())
            raise ValueError(f"{counts}; fields that change together need the same number of seeds")
        return seeds


def load_sweep(path: str | Path) -> SweepFile:
    """Read the file of a sweep. Its `base` is then a path from the current folder, or a shipped name.

    Raises:
        InputError: one line per problem, `field: value → fix`.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"sweep: {str(path)!r} → there is no such file")
    try:
        data = parse_yaml(read_text("sweep", file, "give a UTF-8 YAML file"))
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {error} → fix the YAML") from None
    if not isinstance(data, dict):
        raise InputError(f"sweep: {str(path)!r} → must contain settings such as `base: …` and `cells: …`")
    if "base" not in data and data.keys() & {"caption", "pictures", "train", "evaluate"}:
        raise InputError(
            f"sweep: {str(path)!r} → is the configuration of a run; give a file with `base: {path}`, and cells or grid"
        )
    sweep = parse_sweep(data)
    return sweep.model_copy(update={"base": _base(sweep.base, file.parent)})


def parse_sweep(data: Mapping[str, Any]) -> SweepFile:
    """Raises InputError: one line per problem."""
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(dict.fromkeys(problem_lines(error, data, SweepFile)))) from None


def _base(base: str, folder: Path) -> str:
    beside = folder / base
    return str(beside) if not Path(base).exists() and base not in shipped_configs() and beside.is_file() else base
