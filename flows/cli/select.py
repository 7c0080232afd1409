"""`bootpig select`: shows what each rule of a selection keeps and drops, before anything is made or changed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bootpig.flows.cli import display
from bootpig.flows.loading import load_config
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.reduce import stage_input
from bootpig.stages.plain_text import one_line
from bootpig.stages.select.rules import Outcome, limit_text, nothing_left
from bootpig.stages.select.stage import Select
from bootpig.storage.parts import Parts

SUBJECTS = 20
"""Subjects in the terminal; the page has all."""


def select(asked: argparse.Namespace) -> int:
    """Apply the selection of a configuration to the scores in its store, print tables, and write a page.

    Returns 1 if no sample is left.

    Raises:
        InputError: there is no selection, nothing is scored yet, or the page cannot be written.
    """
    config = load_config(asked.config, asked.set)
    if config.select is None:
        raise InputError("select: missing → add a select section, or set a rule, such as --set select.min_sharpness=5%")
    engine = Engine(config)
    survey = engine.survey("score")
    if not survey.markers:
        raise InputError(f"score: no unit is complete → make them with bootpig run {asked.config} --until score")
    stage = engine.make("select")
    assert isinstance(stage, Select)
    with display.shown_on(Console(stderr=True)) as screen:
        if missing := len(survey.units) - len(survey.markers):
            screen.line(f"{missing} of {len(survey.units)} units are not scored yet; these are the others", "yellow")
        with screen.stage("select", 1) as bar:
            data = stage_input(engine.root, survey, Path())  # a map stage needs no folder
            outcome = stage.outcome(data, bar.result())
    facts = outcome.facts()
    _write_page(engine, outcome, facts, Path(asked.out))
    if asked.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for table in tables(facts):
            console.print(table)
        console.print(f"page: {asked.out}", highlight=False, markup=False, soft_wrap=True)
    if (problem := nothing_left(facts)) is None:
        return 0
    print(f"select: {problem}", file=sys.stderr)
    return 1


def _write_page(engine: Engine, outcome: Outcome, facts: dict[str, Any], out: Path) -> None:
    from bootpig.stages.report.html import build_selection
    from bootpig.stages.report.selection import selection_facts

    segment = engine.survey("segment")
    parts = Parts(engine.root, "segment", segment.fingerprint)
    shown = selection_facts(lambda stage, unit: parts.payload(unit, segment.markers[unit]), outcome.scored, facts)
    try:
        out.write_text(build_selection(engine.config.name, shown), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: {str(out)!r} → cannot be written ({error.strerror}); choose another path") from None


def tables(facts: dict[str, Any]) -> list[Table]:
    """Rules, overlaps and subjects for the terminal. `facts` as of `Outcome.facts`."""
    rules = Table("rule", "limit", "keeps", "drops", "only it drops")
    for rule in facts["rules"]:
        limit = limit_text(rule["limit"])
        limit += f" ({rule['value']:.4g})" if isinstance(rule["limit"], str) else ""
        kept = facts["samples"] - rule["dropped"]
        rules.add_row(rule["rule"], limit, str(kept), str(rule["dropped"]), str(rule["alone"]))
    lost = facts["samples"] - facts["selected"]
    rules.add_row("all of them", "", str(facts["selected"]), str(lost), "", style="bold")
    found = [rules]
    if facts["overlaps"]:
        overlaps = Table("dropped by", "and by", "samples")
        for overlap in facts["overlaps"]:
            overlaps.add_row(*overlap["rules"], str(overlap["samples"]))
        found.append(overlaps)
    subjects = Table("subject", "scored", "selected")
    for row in facts["subjects"][:SUBJECTS]:
        subjects.add_row(Text(one_line(row["subject"])), str(row["samples"]), str(row["selected"]))
    if (hidden := len(facts["subjects"]) - SUBJECTS) > 0:
        subjects.add_row(f"{hidden} more", "", "")
    return [*found, subjects]
