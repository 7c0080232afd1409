"""Implements the commands of the command line. Prefect and torch are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bootpig import __version__
from bootpig.flows.api import ServerError, configured_api, require_answer
from bootpig.flows.cli import display
from bootpig.flows.environment import check_scratch
from bootpig.flows.loading import load_config, problem_lines, shipped_configs
from bootpig.flows.parameters import by_value_or_reference
from bootpig.flows.prepared import prepare, prepared
from bootpig.flows.rounds import first_round, with_trained_models
from bootpig.flows.runs.gc import collect, garbage, size
from bootpig.flows.runs.records import (
    RunRecord,
    alive,
    compare,
    is_alive,
    latest_run,
    list_runs,
    metrics_of,
    new_run,
    promote,
    read_config,
    read_run,
)
from bootpig.flows.selection import known_stage, known_units, parse_units, span
from bootpig.flows.server import prefect_server
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight
from bootpig.stages.engine.reduce import is_first_process
from bootpig.stages.engine.survey import graph_of
from bootpig.stages.plain_text import one_line, printable
from bootpig.stages.view.stage import NO_FIRST_ROUND
from bootpig.storage.errors import StoreFull, StoreUnavailable
from bootpig.storage.root import Root
from bootpig.storage.secrets import mask


def explain(error: Exception) -> int:
    """Print an error to stderr. Returns the exit code: 2 for bad input, 1 for anything else."""
    if isinstance(error, ValidationError):
        _complain(*problem_lines(error, {}))
        return 2
    if isinstance(error, StoreFull | StoreUnavailable | ServerError):
        _complain(str(error))
        return 1
    if isinstance(error, ValueError) and _is_ours(error):
        _complain(*str(error).splitlines())
        return 2
    _complain(_unexpected(error))
    return 1


def _unexpected(error: Exception) -> str:
    """One line for an error that nobody expected. Its traceback, without secrets, goes into a log file."""
    what = one_line(f"{type(error).__name__}: {error}", 300)
    text = mask("".join(traceback.format_exception(error)))
    for folder in (None, os.environ.get("HOME") or None, os.getcwd()):  # None: the temporary folder
        with contextlib.suppress(OSError):
            handle, path = tempfile.mkstemp(prefix="bootpig-", suffix=".log", dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as log:
                log.write(f"bootpig {__version__}, Python {sys.version.split()[0]}\n{text}")
            return f"unexpected error: {what}; please report it with {path}, which holds the traceback"
    return f"unexpected error: {what}; no folder takes a log of its traceback: set TMPDIR to one that can be written"


def _is_ours(error: ValueError) -> bool:
    """Whether an error was raised for wrong input by this project's own code, not by a library."""
    return type(error).__module__.startswith(("bootpig.stages.", "bootpig.models.", "bootpig.storage."))


def _complain(*lines: str) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)


def run(asked: argparse.Namespace) -> int:
    """`bootpig run`. Everything that can be checked without Prefect is checked before it is started."""
    config, stages = _what_to_run(asked)
    units = None if asked.units is None else parse_units(asked.units)
    known_units(config, graph_of(config), stages, units)
    before = None if asked.only or asked.first or asked.run else first_round(config, stages)
    if before is not None:
        others = [line for line in preflight(Engine(config), stages) if not line.startswith(NO_FIRST_ROUND)]
        if others:
            raise InputError("\n".join(others))
    engine = prepare(config, stages) if before is None else prepare(before, graph_of(before).stages)
    rounded = config.unit_size * len(config.unit_numbers())
    if rounded != config.count and config.caption is not None and config.caption.source != "file":
        _complain(
            f"caption.count: {config.count} → rounded up to {rounded}, a multiple of unit_size {config.unit_size}"
        )
    started = time.monotonic()
    options: dict[str, Any] = {"run": asked.run, "force": asked.force, "retry_failed": asked.retry_failed}
    with (
        display.shown_on(Console()) as screen,
        prefect_server("bootpig.flows.pipeline") as address,
        prepared(before or config, engine),
    ):
        from bootpig.flows.pipeline import TOY, bootstrap, run_stage

        screen.line(f"run of {config.name!r} in {config.root}; Prefect: {address.removesuffix('/api')}", "dim")
        options |= by_value_or_reference(config, units, TOY)
        if asked.only:
            options |= {"stage": asked.only, "downstream": asked.downstream}
            state = run_stage(**options, return_state=True)
        else:
            state = bootstrap(first=asked.first, until=asked.until, **options, return_state=True)
        error = None if state.is_completed() or state.data is None else state.result(raise_on_failure=False)
    if isinstance(error, Exception):
        return explain(error)
    record = _record_of(engine.root, str(state.state_details.flow_run_id), asked.run)
    outcome = "done" if state.is_completed() else "failed"
    _conclude(engine.root, record, f"{outcome} in {time.monotonic() - started:.0f} s")
    if state.is_completed():
        return 0
    _complain(str(state.message))
    return 1


def _what_to_run(asked: argparse.Namespace) -> tuple[PipelineConfig, tuple[str, ...]]:
    """The configuration and the stages. Raises InputError if options contradict each other."""
    if asked.run is not None:
        if asked.config is not None or asked.set:
            raise InputError(f"--run: {asked.run!r} → uses the config of that run; leave out CONFIG and --set")
        root = Root(asked.root)
        config = read_config(root, read_run(root, asked.run))
    elif asked.config is None:
        raise InputError("config: missing → give a YAML file or a shipped name such as toy, or --run ID")
    else:
        config = load_config(asked.config, asked.set)
    if asked.only is None:
        for option in ("units", "downstream"):
            if getattr(asked, option):
                raise InputError(f"--{option}: → needs --only STAGE")
        return config, span(graph_of(config), asked.first, asked.until)
    if asked.first or asked.until:
        raise InputError(f"--only: {asked.only!r} → leave out --from and --until; --downstream adds the later stages")
    graph = graph_of(config)
    stage = known_stage("--only", asked.only, graph)
    return config, graph.below(stage) if asked.downstream else (stage,)


def _record_of(root: Root, flow_run: str, run: str | None) -> RunRecord | None:
    if run is not None:
        return read_run(root, run)
    return next((record for record in reversed(list_runs(root)) if record.flow_run == flow_run), None)


def _conclude(root: Root, record: RunRecord | None, outcome: str) -> None:
    """Print the results table, if there are results, and the address of the report."""
    console = Console()
    if record is None:
        return
    if metrics := metrics_of(root, record):
        from bootpig.stages.report.html import results_table

        console.print(results_table(metrics), highlight=False, markup=False)
    console.print(f"{outcome}; run {record.id}", highlight=False, markup=False)
    if root.exists(f"{record.folder}/report.html"):
        address = root.address(record.folder, "report.html")
        console.print(f"report: {address}", highlight=False, markup=False, soft_wrap=True)


def init(asked: argparse.Namespace) -> int:
    """`bootpig init`: copy a shipped configuration to a file, or list their names."""
    shipped = shipped_configs()
    if asked.name is None:
        for name, file in shipped.items():
            print(f"{name:<12} {file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        return 0
    if asked.name not in shipped:
        raise InputError(f"NAME: {asked.name!r} → there is no such configuration; choose from {', '.join(shipped)}")
    out = Path(asked.out or f"{asked.name}.yaml")
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(shipped[asked.name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"--out: {str(out)!r} → already exists; choose another name") from None
    except OSError as error:
        raise InputError(f"--out: {str(out)!r} → cannot be written ({error.strerror}); choose another path") from None
    print(out)
    return 0


def status(asked: argparse.Namespace) -> int:
    from bootpig.flows.runs.status import status, status_table

    facts = status(load_config(asked.config, asked.set))
    _show(facts, status_table(facts), asked.json)
    return 0


def plan(asked: argparse.Namespace) -> int:
    from bootpig.flows.runs.plan import licence_lines, plan, plan_table

    facts = plan(load_config(asked.config, asked.set))
    _show(facts, plan_table(facts), asked.json)
    if not asked.json:
        console = Console()
        for kind, lines in (("missing", facts["missing"]), ("warning", facts["warnings"])):
            for line in lines:
                console.print(f"{kind}: {line}", style="yellow", highlight=False, markup=False)
        for line in licence_lines(facts):
            console.print(line, highlight=False, markup=False)
        for assumption in facts["assumptions"]:
            console.print(f"assumed: {assumption}", style="dim", highlight=False, markup=False)
    return 0


def runs(asked: argparse.Namespace) -> int:
    root = Root(asked.root)
    if asked.action == "promote":
        record = read_run(root, asked.id)
        if record.state == "done" and not record.uses.get("encode"):
            fix = f"continue it with bootpig run --run {record.id}"
            raise InputError(f"run: {record.id!r} → did not make a complete data set; {fix}")
        promote(root, record)
        print(f"latest: {record.id}")
        return 0
    if asked.action == "diff":
        return _diff(root, asked)
    records = list_runs(root)
    with contextlib.suppress(InputError):
        asked.latest = latest_run(root)
    table = Table("run", "state", "units", "minutes", "message")
    for record in records:
        minutes = "" if record.ended is None else f"{(record.ended - record.started).total_seconds() / 60:.1f}"
        name = f"{record.id} (latest)" if record.id == getattr(asked, "latest", None) else record.id
        state = record.state if record.state != "running" or is_alive(root, record) else "killed"
        table.add_row(name, state, str(len(record.units)), minutes, Text(one_line(record.message)))
    _show([json.loads(record.model_dump_json()) for record in records], table, asked.json)
    return 0


def _diff(root: Root, asked: argparse.Namespace) -> int:
    from bootpig.flows.runs.scores import compare_scores, scores_table

    a, b = read_run(root, asked.a), read_run(root, asked.b)
    pairs, scores = compare(root, a, b), compare_scores(root, a, b)
    table = Table("", escape(asked.a), escape(asked.b))
    for pair in pairs:
        table.add_row(*(Text(one_line(cell)) for cell in pair))
    facts = {"differences": [{"what": what, "a": a, "b": b} for what, a, b in pairs], "scores": scores}
    _show(facts, table, asked.json)
    if scores and not asked.json:
        _show(scores, scores_table(scores, (asked.a, asked.b)), as_json=False)
    return 0


def gc(asked: argparse.Namespace) -> int:
    root = Root(asked.root)
    found = garbage(root, asked.keep)
    total = 0
    for folder in found.folders:
        total += (bytes_below := size(root, folder))
        print(f"{folder}  {bytes_below / 1e6:.1f} MB")
    for record in found.runs:
        print(record.folder)
    if found.replaced:
        total += (replaced := sum(found.replaced.values()))
        print(f"{len(found.replaced)} payloads replaced by newer ones  {replaced / 1e6:.1f} MB")
    if not asked.dry_run:
        collect(root, found)
    did = "would remove" if asked.dry_run else "removed"
    kept = ", ".join(record.id for record in found.kept) or "all, because none has been promoted yet"
    print(f"{did}: {len(found.runs)} runs, {len(found.folders)} folders, {total / 1e6:.1f} MB; versions kept: {kept}")
    return 0


def setup_server(asked: argparse.Namespace) -> int:
    address = configured_api()
    if address is None:
        raise InputError(
            "PREFECT_API_URL: missing → set it to the address of a server, such as http://127.0.0.1:4200/api"
        )
    require_answer(address)
    from bootpig.flows.automations import set_up

    for line in set_up(asked.notify):
        print(line)
    return 0


def verify(asked: argparse.Namespace) -> int:
    engine = Engine(with_trained_models(load_config(asked.config, asked.set)))
    problems: list[str] = []
    with display.shown_on(Console(stderr=True)) as screen:
        for stage in engine.graph.stages:
            with screen.stage(stage, 1) as bar:
                problems += engine.verify(stage, bar.result())
    _complain(*problems)
    print(f"{len(problems)} problems; run again to rebuild what is damaged" if problems else "all checksums match")
    return 1 if problems else 0


def train(asked: argparse.Namespace) -> int:
    """`bootpig train`: run only the train stage, without Prefect, in each process that torchrun starts."""
    config = load_config(asked.config, asked.set)
    engine = Engine(config)
    check_scratch()  # first: libraries that open models write there as they are imported
    if problems := preflight(engine, ("train",)):
        raise InputError("\n".join(problems))
    first = is_first_process()
    with _recorded(engine) if first else contextlib.nullcontext() as record:
        with display.shown_on(Console() if first else None) as screen, screen.stage("train", 1) as bar:
            report = engine.run_reduce("train", progress=bar.result())
        if record is not None:
            record.state, record.message = ("failed", report.message) if report.state == "failed" else ("done", "")
    if report.state == "failed":
        _complain(report.message)
        return 1
    if first:
        made = "is already in the store" if report.state == "cached" else f"finished in {report.seconds:.0f} s"
        trained = engine.survey("train").result
        assert trained is not None
        print(f"train {made}: {engine.root.address(trained.path, 'model')}")
    return 0


@contextlib.contextmanager
def _recorded(engine: Engine) -> Iterator[RunRecord]:
    """Keep a run record for a training run without Prefect: shown by `bootpig runs`, respected by `bootpig gc`."""
    record = new_run(engine.root, engine.config)
    for name, survey in engine.survey_all(("train",)).items():
        record.use(name, survey.fingerprint)
    record.save(engine.root)
    try:
        with alive(engine.root, record):
            yield record
    except Exception as error:
        record.state, record.message = "failed", str(error).strip()
        raise
    except BaseException:
        record.state = "interrupted"
        raise
    finally:
        record.ended = datetime.now(UTC)
        record.save(engine.root)


def _show(facts: Any, table: Table, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        # a pipe has no width: there, long lines are better than truncated cells
        Console(width=None if sys.stdout.isatty() else 160).print(table)
