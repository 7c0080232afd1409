"""Expands the file of a sweep into its runs: every cell with every seed, each with its configuration, all checked."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from bootpig.flows.loading import config_with, read_settings
from bootpig.flows.sweep.file import SweepBaseline, SweepFile
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.measures.names import in_order
from bootpig.storage.fingerprint import digest

MOST_RUNS = 1000
"""Of a sweep."""

MOST_LINES = 20
"""Problems that are shown. For more, their number is."""

OWN = {
    "root": "all runs of a sweep share one store; set `root` of the sweep",
    "name": "each run is named after its cell; leave it out",
}
"""Fields that a cell cannot set."""

_LONGEST_VALUE = 40
"""Characters of a value in the name of a cell."""


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    name: str
    settings: Mapping[str, Any]
    """Dotted field → value, without seeds."""
    baseline: str | None
    """The name of the cell that it is compared with. None: the sweep has no baseline."""


@dataclass(frozen=True)
class CellRun:
    """One cell with one seed: an ordinary run."""

    cell: Cell
    seeds: Mapping[str, int]
    """Dotted field → seed. Empty if the sweep has none."""
    config: PipelineConfig

    @property
    def seed(self) -> str:
        """Its seeds as text, such as `train.seed=1`. Runs of different cells with the same text are compared."""
        return ", ".join(f"{field}={value}" for field, value in self.seeds.items())

    @property
    def label(self) -> str:
        return f"{self.cell.name}, {self.seed}" if self.seed else self.cell.name


def expand(sweep: SweepFile) -> list[CellRun]:
    """The runs of a sweep: all cells with the first seeds, then with the next. Reads the base, and not the store.

    Raises:
        InputError: a cell is not valid, or the cells do not make a sweep; one line per problem.
    """
    if problems := _unusable(sweep):
        raise InputError("\n".join(problems))
    cells = _cells(sweep)
    base = read_settings("base", sweep.base)
    if "base" in base:
        raise InputError(f"base: {sweep.base!r} → is the file of a sweep; give the configuration of a run")
    repeats = [dict(zip(sweep.seeds, values, strict=True)) for values in zip(*sweep.seeds.values(), strict=True)] or [
        {}
    ]
    lines: dict[str, list[str]] = {}
    """Problem → the cells that have it."""
    runs = []
    for seeds in repeats:
        for number, cell in enumerate(cells):
            own = {"name": _run_name(sweep.name, number, cell.name, seeds)}
            own |= {} if sweep.root is None else {"root": sweep.root}
            try:
                runs.append(CellRun(cell, seeds, config_with(base, {**cell.settings, **seeds, **own})))
            except InputError as error:
                for line in str(error).splitlines():
                    lines.setdefault(line + _hint(line, cell.settings), []).append(cell.name)
    if lines:
        raise InputError("\n".join(named_lines(lines, len(cells))))
    problems = _alike(runs)
    made = measured_by(runs)
    problems += [
        f"report: {name!r} → no cell measures it; put it into evaluate.metrics, or choose from {', '.join(made)}"
        for name in sweep.report or ()
        if name not in made
    ]
    if problems:
        raise InputError("\n".join(problems))
    return runs


def measured_by(runs: Iterable[CellRun]) -> tuple[str, ...]:
    """The measures that any of the runs makes."""
    return in_order(name for run in runs for name in run.config.evaluate.metrics)


def named_lines(lines: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """Problems with the cells that have them, one line each. A problem of all `count` cells is one of the base."""
    found = []
    for line, names in lines.items():
        unique = list(dict.fromkeys(names))
        more = f" and {len(unique) - 3} more" if len(unique) > 3 else ""
        found.append(line if len(unique) == count else f"cells {', '.join(map(repr, unique[:3]))}{more}: {line}")
    hidden = len(found) - MOST_LINES
    return [*found[:MOST_LINES], *([f"cells: {hidden} more problems"] if hidden > 0 else [])]


def meaning(config: PipelineConfig) -> dict[str, Any]:
    """The settings that are not the default, without those that change neither data nor results, such as `threads`."""
    kept: dict[str, Any] = _without_speed(config, config.model_dump(mode="json", exclude_defaults=True))
    return kept


def sweep_digest(runs: Iterable[CellRun]) -> str:
    """16 hex digits that name the results of these runs: their cells, seeds and settings."""
    return digest([[run.cell.name, run.seed, meaning(run.config)] for run in runs])[:16]


def _unusable(sweep: SweepFile) -> list[str]:
    """What can be said without the base."""
    if not sweep.cells and not sweep.grid:
        return ["cells: missing → give cells, or a grid, or both"]
    combinations = max(1, len(sweep.cells))
    for values in sweep.grid.values():
        combinations *= len(values)
    repeats = max((len(values) for values in sweep.seeds.values()), default=1)
    if combinations * repeats > MOST_RUNS:
        count = f"{combinations} cells × {repeats} seeds" if repeats > 1 else f"{combinations} cells"
        return [f"grid: {count} → a sweep has at most {MOST_RUNS} runs; remove values"]
    problems = []
    for where, fields in [
        *((f"cells {cell.name!r}", cell.set) for cell in sweep.cells),
        ("grid", sweep.grid),
        ("seeds", sweep.seeds),
    ]:
        problems += [f"{where}: {field!r} → {why}" for field, why in OWN.items() if field in fields]
        if where != "grid":
            problems += [f"{where}: {field!r} → is in grid too; remove one" for field in fields if field in sweep.grid]
        if where.startswith("cells"):
            problems += [
                f"{where}: {field!r} → is in seeds too; remove one" for field in fields if field in sweep.seeds
            ]
    for field in sweep.seeds:
        if field not in (known := _seed_fields(PipelineConfig)):
            problems.append(f"seeds: {field!r} → is not a seed of the configuration; choose from {', '.join(known)}")
    names = [cell.name for cell in sweep.cells]
    problems += [
        f"cells: {name!r} → is given twice; names must differ" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return problems


def _seed_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all seeds of a configuration."""
    found = []
    for name, field in model.model_fields.items():
        if name == "seed":
            found.append(f"{prefix}{name}")
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _seed_fields(kind, f"{prefix}{name}.")
    return found


def _cells(sweep: SweepFile) -> list[Cell]:
    """Raises InputError: there is no such baseline, or two cells have one name."""
    points = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    varied = [field for field, values in sweep.grid.items() if len(values) > 1]
    named: list[tuple[str | None, Mapping[str, Any]]] = [(cell.name, cell.set) for cell in sweep.cells] or [(None, {})]

    def name(first: str | None, point: Mapping[str, Any]) -> str:
        pieces = [] if first is None else [first]
        pieces += [f"{field}={_shown(point[field])}" for field in (varied or (list(point) if first is None else []))]
        return ", ".join(pieces)

    compared = _baseline(sweep)
    cells = []
    for first, settings in named:
        for point in points:
            other = None
            if compared is not None:
                other = name(first if compared.name is None else compared.name, {**point, **compared.set})
            cells.append(Cell(name(first, point), {**settings, **point}, other))
    names = [cell.name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"cells: {twice!r} → is the name of two cells; change a name in cells, or remove a value in grid"
        )
    return cells


def _baseline(sweep: SweepFile) -> SweepBaseline | None:
    """The baseline, with names and values that exist. Raises InputError."""
    given = sweep.baseline
    if given is None:
        return None
    baseline = SweepBaseline(name=given) if isinstance(given, str) else given
    names = [cell.name for cell in sweep.cells]
    if baseline.name is not None and baseline.name not in names:
        some = f"choose from {', '.join(map(repr, names[:10]))}" if names else "give `set` with values of grid"
        raise InputError(f"baseline: {baseline.name!r} → names no cell; {some}")
    for field, value in baseline.set.items():
        if value not in sweep.grid.get(field, []):
            raise InputError(f"baseline.set: {field}={_shown(value)} → is no value of grid; choose one, or remove it")
    if baseline.name is None and not baseline.set:
        raise InputError("baseline: → names no cell; give a name in cells, or `set` with values of grid")
    return baseline


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 10]}…{digest(value)[:8]}"


def _run_name(sweep: str, number: int, cell: str, seeds: Mapping[str, int]) -> str:
    """The name of a run's configuration, which has letters, digits and dashes only."""
    words = re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-")[:60].strip("-")
    return "-".join([sweep, *([words] if words else [f"cell-{number + 1}"]), *map(str, seeds.values())])


def _hint(line: str, settings: Mapping[str, Any]) -> str:
    """What to add to a problem of a section that a cell has replaced, maybe without meaning to."""
    section = line.partition(".")[0]
    if ": missing →" not in line or not isinstance(settings.get(section), Mapping):
        return ""
    field = next(iter(settings[section]), "…")
    return f"; a cell replaces a section as a whole, so write `{section}.{field}: …`"


def _alike(runs: Sequence[CellRun]) -> list[str]:
    """Cells whose runs would be the same."""
    firsts: dict[str, CellRun] = {}
    pairs: dict[tuple[str, str], None] = {}
    for run in runs:
        first = firsts.setdefault(digest(meaning(run.config)), run)
        if first.cell.name != run.cell.name:
            pairs[first.cell.name, run.cell.name] = None
    return [f"cells: {a!r} and {b!r} → have the same settings; remove one" for a, b in pairs]


def _without_speed(config: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in dumped.items():
        extra = type(config).model_fields[name].json_schema_extra
        if isinstance(extra, dict) and extra.get("affects") == "speed":
            continue
        below = getattr(config, name)
        kept[name] = _without_speed(below, value) if isinstance(below, BaseModel) and value else value
    return kept
