"""Sweeps, statements and recipes fit together, and a verdict follows from the interval alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from bootpig.flows.loading import load_config
from bootpig.flows.sweep.cells import expand
from bootpig.flows.sweep.file import load_sweep
from bootpig.stages.evaluate.rivals.config import RivalConfig
from bootpig.stages.sweep.bootstrap import Interval
from science.__main__ import HERE, SWEEPS
from science.page import BASELINES, RIVALS, TITLES, TUNING
from science.recipes import BASE, CLIP, CLIP_JUDGE, DINO, RECIPES, RUN, Recipe, grid
from science.results import Cell, Evaluation, Results
from science.statements import OUR_STATEMENTS, STATEMENTS, Side, Statement, difference, paired, verdict
from science.tune import STEPS, TEXT_ONLY_GUIDANCE, at_the_end

PROJECT = Path(__file__).parents[2]
METHODS = ("bootpig", "text_only", "untrained", "bootpig_no_reference", *RIVALS)


@cache
def cells_of(sweep: str) -> dict[str, int]:
    """Cell → number of seeds."""
    runs = expand(load_sweep(HERE / f"{sweep}.yaml"))
    return {name: sum(run.cell.name == name for run in runs) for name in {run.cell.name for run in runs}}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def test_every_file_is_a_sweep_of_its_name() -> None:
    assert sorted(SWEEPS) == sorted(path.stem for path in HERE.glob("*.yaml"))
    assert all(load_sweep(HERE / f"{name}.yaml").name == name for name in SWEEPS)
    assert set(TITLES) <= set(SWEEPS)
    assert all(cell in cells_of(sweep) for sweep, cell in BASELINES.items())


@pytest.mark.parametrize("statement", [*STATEMENTS, *OUR_STATEMENTS], ids=lambda each: each.text)
def test_a_statement_names_cells_that_exist(statement: Statement) -> None:
    seeds = []
    for side in (statement.more, statement.less):
        assert side.method in METHODS
        seeds.append(cells_of(side.sweep or statement.sweep)[side.cell])
    assert seeds[0] == seeds[1] or 1 in seeds
    assert statement.more != statement.less


@pytest.mark.parametrize("statement", [s for s in STATEMENTS if s.less.method == "IP-Adapter"], ids=lambda s: s.text)
def test_what_reads_one_picture_is_compared_with_one_reference(statement: Statement) -> None:
    runs = expand(load_sweep(HERE / f"{statement.more.sweep}.yaml"))
    (ours, *_) = [run.config for run in runs if run.cell.name == statement.more.cell]
    (rivals, *_) = [run.config for run in expand(load_sweep(HERE / "rivals.yaml"))]
    assert ours.evaluate.references == 1
    assert ours.train.reference_timestep == "same"
    assert (ours.evaluate.subjects, ours.evaluate.compared) == (rivals.evaluate.subjects, rivals.evaluate.compared)


def test_rivals_draw_as_their_recipes_say() -> None:
    sweep = yaml.safe_load((HERE / "rivals.yaml").read_text(encoding="utf-8"))
    rivals = [RivalConfig(**each) for each in sweep["cells"][0]["set"]["evaluate.rivals"]]
    assert [rival.name for rival in rivals] == list(RIVALS)
    for rival in rivals:
        recipe = RECIPES[RIVALS[rival.name]]
        assert (rival.guidance_scale, rival.scale) == (recipe.guidance_scale, recipe.scale)


def test_recipes_are_those_that_tuning_chose() -> None:
    for method, recipe in RECIPES.items():
        assert len({str(each) for each in grid(method)}) == len(grid(method))
        if TUNING.exists() and (tuned := json.loads(TUNING.read_text(encoding="utf-8")).get(method)):
            assert str(recipe) == tuned["chosen"]


def test_a_choice_at_the_end_of_the_grid_is_named() -> None:
    tried = [Recipe(updates, rate, 4.0) for updates in (100, 200, 400) for rate in (1e-4, 1e-3)]
    assert at_the_end(Recipe(200, 1e-3, 4.0), tried) == ["learning_rate", "guidance_scale"]


def test_tuning_judges_as_the_sweeps_do() -> None:
    config = load_config(RUN)
    assert (config.evaluate.clip, config.evaluate.dino) == (CLIP_JUDGE, DINO)
    assert config.evaluate.steps == STEPS
    assert (config.train.model, config.evaluate.guidance_scale) == (BASE, TEXT_ONLY_GUIDANCE)
    assert CLIP != CLIP_JUDGE


def evaluation(**scores: float) -> Evaluation:
    """Subject → DINO of bootpig."""
    return Evaluation(1, {"bootpig": {"dino": scores}}, {}, {}, "", "")


def cell(*seeds: Evaluation | None) -> Cell:
    return Cell("cell", {}, {f"seed {number}": each for number, each in enumerate(seeds)})


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "not measured"),
        (Interval(0.2, 0.1, 0.3), "reproduced"),
        (Interval(-0.2, -0.3, -0.1), "not reproduced"),
        (Interval(0.2, -0.1, 0.3), "not decided"),
        (Interval(0.1, 0.0, 0.2), "not decided"),
    ],
)
def test_the_rule(found: Interval | None, says: str) -> None:
    assert verdict(found) == says


def test_a_difference_is_paired_by_subject_and_seed() -> None:
    """The same difference for each subject and seed has no width, however far subjects are from each other."""
    more = cell(evaluation(a=0.9, b=0.2), evaluation(a=0.8, b=0.4))
    less = cell(evaluation(a=0.8, b=0.1), evaluation(a=0.7, b=0.3))
    found = paired(more, "bootpig", less, "bootpig", "dino")
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_one_seed_is_compared_with_all() -> None:
    more, less = cell(evaluation(a=0.9), evaluation(a=0.7)), cell(evaluation(a=0.5))
    found = paired(more, "bootpig", less, "bootpig", "dino")
    assert found is not None
    assert found.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (cell(evaluation(a=1.0), None), cell(evaluation(a=1.0), evaluation(a=1.0))),  # a run is missing
        (cell(evaluation(a=1.0)), cell(evaluation(b=1.0))),  # no subject in common
        (cell(*[evaluation(a=1.0)] * 2), cell(*[evaluation(a=1.0)] * 3)),  # seeds that do not fit
        (cell(evaluation()), cell(evaluation(a=1.0))),  # no score
    ],
)
def test_nothing_is_made_of_results_that_are_missing(more: Cell, less: Cell) -> None:
    assert paired(more, "bootpig", less, "bootpig", "dino") is None


def test_a_statement_without_results_is_not_measured() -> None:
    statement = Statement("text", "source", "sweep", "dino", Side("a"), Side("b"))
    assert difference(statement, Results({})) is None
    assert difference(statement, Results({"sweep": {"a": cell(evaluation(x=1.0))}})) is None
    both = Results({"sweep": {"a": cell(evaluation(x=1.0)), "b": cell(evaluation(x=0.5))}})
    found = difference(statement, both)
    assert found is not None
    assert found.mean == pytest.approx(0.5)
