"""Loads a configuration from YAML and overrides, and validates it. All problems are reported at once, one per line."""

from __future__ import annotations

import copy
import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.text_files import parse_yaml, read_text
from bootpig.storage.root import masked


def shipped_configs() -> dict[str, Path]:
    """The configurations shipped with the package: name → file."""
    folder = Path(__file__).resolve().parents[1] / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a configuration.

    Args:
        path: a YAML file, or the name of a shipped configuration, such as `toy`.
        overrides: settings of the form `a.b=value` with values in YAML, applied on top of the file in order.

    Raises:
        InputError: one line per problem, `field: value → fix`.
    """
    return parse_config(_text("config", path), overrides, name=str(path))


def read_settings(field: str, path: str | Path) -> dict[str, Any]:
    """The settings in a configuration file, which may lack some. `field` names the file in messages.

    Raises:
        InputError: there is no such file, or it holds no settings.
    """
    return _settings(_text(field, path), str(path))


def parse_config(text: str, overrides: Sequence[str] = (), name: str = "config") -> PipelineConfig:
    """Like `load_config`, but from text; error messages use `name` for the file."""
    data = _settings(text, name)
    problems: list[str] = []
    for override in overrides:
        try:
            _lay_over(data, override)
        except InputError as error:
            problems.append(str(error))
    return _validated(data, problems)


def config_with(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> PipelineConfig:
    """The configuration of `settings`, as of `read_settings`, with `changes`: dotted field → value.

    Raises:
        InputError: one line per problem, `field: value → fix`.
    """
    data = copy.deepcopy(dict(settings))
    problems: list[str] = []
    for name, value in changes.items():
        try:
            _put(data, name, copy.deepcopy(value), f"{name}: {_shown(value)}")
        except InputError as error:
            problems.append(str(error))
    return _validated(data, problems)


def _text(field: str, path: str | Path) -> str:
    file = Path(path)
    if not file.exists() and str(path) in shipped_configs():
        file = shipped_configs()[str(path)]
    if not file.exists():
        raise InputError(f"{field}: {str(path)!r} → there is no such file; {_nearby(file)}")
    return read_text(field, file, "give a UTF-8 YAML file")


def _settings(text: str, name: str) -> dict[str, Any]:
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{name}: {error} → fix the YAML") from None
    if not isinstance(data, dict):
        raise InputError(f"{name}: {_shown(data)} → must contain settings such as `name: …` and `caption: …`")
    return data


def _validated(data: dict[str, Any], problems: list[str]) -> PipelineConfig:
    try:
        config = PipelineConfig.model_validate(data)
    except ValidationError as error:
        problems = problems + problem_lines(error, data)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return config


def dump_config(config: PipelineConfig) -> str:
    """The complete configuration with all defaults, as YAML that `parse_config` reads back to an equal one.

    A run can therefore be repeated exactly after a default has changed.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def problem_lines(error: ValidationError, data: Any, of: type[BaseModel] = PipelineConfig) -> list[str]:
    """One line for each problem of `data`, which should become an `of`: field, value, fix."""
    lines = []
    for problem in error.errors(include_url=False):
        place, model = _place(problem["loc"], data, of)
        value, fix = _value(problem), _mend(problem, model)
        if value:
            lines.append(f"{place or 'config'}: {value} → {fix}")
        else:
            lines.append(f"{place}: {fix}" if place else fix)
    return lines


def _nearby(file: Path) -> str:
    shipped = shipped_configs()
    if close := difflib.get_close_matches(file.stem, shipped, n=1):
        return f"did you mean the shipped configuration {close[0]!r}?"
    near = sorted(file.parent.glob("*.y*ml"))
    found = f"files there: {', '.join(str(path) for path in near[:8])}; " if near else ""
    return f"{found}shipped configurations: {', '.join(shipped)}"


def _lay_over(data: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set: {override!r} → write it as field=value, such as caption.count=2000")
    try:
        read = parse_yaml(value)
    except ValueError as error:
        raise InputError(f"--set: {_shown(override)} → the value is not YAML: {error}") from None
    _put(data, name, read, f"--set: {override!r}")


def _put(data: dict[str, Any], name: str, value: Any, shown: str) -> None:
    """Set the dotted field `name`. `shown`: what was given, for a message."""
    *parents, last = name.strip().split(".")
    place = data
    for parent in parents:
        below = place.setdefault(parent, {})
        if not isinstance(below, dict):
            raise InputError(f"{shown} → {parent!r} is a value and has no fields")
        place = below
    place[last] = value


def _place(
    location: Sequence[int | str], data: Any, model: type[BaseModel] | None
) -> tuple[str, type[BaseModel] | None]:
    """The dotted name of a field, and the model that it belongs to. Tags that pydantic adds are left out."""
    names: list[str] = []
    for depth, key in enumerate(location):
        last = depth == len(location) - 1
        known = key in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(key, int)
        if not known and not (last and isinstance(data, Mapping)):
            continue
        names.append(str(key))
        if not last:
            data = data[key]  # type: ignore[index]
            model = _model_of(model, key)
    return ".".join(names), model


def _model_of(model: type[BaseModel] | None, key: int | str) -> type[BaseModel] | None:
    if model is None or key not in model.model_fields:
        return None
    annotation = model.model_fields[str(key)].annotation
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _value(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping | BaseModel):
        return ""  # conflicting fields: the message names them
    field = str(problem["loc"][-1]) if problem["loc"] else ""
    # a value pasted into the wrong field may be a secret
    return "(not shown)" if "key" in field or "url" in field else _shown(problem["input"])


def _mend(problem: ErrorDetails, model: type[BaseModel] | None) -> str:
    kind = problem["type"]
    if kind == "missing":
        return "must be given"
    if kind == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = list(model.model_fields) if model is not None else []
        close = difflib.get_close_matches(key, known, n=1)
        if close:
            return f"there is no such setting; did you mean {close[0]!r}?"
        return "there is no such setting" + (f"; valid settings: {', '.join(known)}" if known else "; remove it")
    message = _one_line(problem["msg"]).replace("valid tuple", "valid list")  # YAML has no tuples
    if kind == "string_type" and isinstance(problem["input"], int | float):
        return f"{message.replace('Input should', 'must', 1)}; write it in quotes, so that YAML sees text in it"
    if kind in ("value_error", "assertion_error"):
        return message.partition(", ")[2] or message
    return message.replace("Input should", "must", 1).replace("String should", "must", 1)


def _shown(value: Any) -> str:
    text = masked(reprlib.repr(value) if isinstance(value, list | dict | tuple | set) else repr(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
