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
from science.page import BASELINES, TITLES, TUNING
from science.recipes import BASE, CLIP, CLIP_JUDGE, DINO, RECIPES, RUN, drawings, next_rate
from science.record import read_record
from science.results import Cell, Evaluation, Results, read_results
from science.statements import OUR_STATEMENTS, STATEMENTS, Side, Statement, difference, paired, verdict
from science.tables import RIVALS
from science.tune import STEPS, TEXT_ONLY_GUIDANCE, choose

PROJECT = Path(__file__).parents[2]
SCALES = ("guidance_scale", "reference_guidance_scale")
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
    rivals = [RivalConfig(**each) for cell in sweep["cells"] for each in cell["set"]["evaluate.rivals"]]
    assert [rival.name for rival in rivals] == [cell["name"] for cell in sweep["cells"]] == list(RIVALS)
    for rival in rivals:
        recipe = RECIPES[RIVALS[rival.name]]
        assert (rival.guidance_scale, rival.scale) == (recipe.guidance_scale, recipe.scale)


def test_recipes_are_those_that_tuning_chose() -> None:
    for method, recipe in RECIPES.items():
        assert len({str(each) for each in drawings(method, recipe)}) == len(drawings(method, recipe))
        if TUNING.exists() and (tuned := json.loads(TUNING.read_text(encoding="utf-8")).get(method)):
            assert str(recipe) == tuned["chosen"], method


@pytest.mark.parametrize("cell", ["as shipped", "noised references"])
def test_table_1_draws_with_the_guidance_that_was_chosen_on_validation_subjects(cell: str) -> None:
    found = read_results([HERE / "guidance-five.yaml"], recorded=read_record())
    assert not found.missing()
    tried = []
    for each in found.cells["guidance-five"].values():
        if each.name.startswith(cell):
            scales = tuple(each.settings[f"evaluate.{name}"] for name in SCALES)
            follows = each.values("bootpig", "clip_t").mean() / each.values("text_only", "clip_t").mean()
            tried.append((scales, {"clip_t_ratio": follows, "dino": each.values("bootpig", "dino").mean()}))
    assert len(tried) == 10
    (config, *_) = [
        run.config
        for run in expand(load_sweep(HERE / "table-1.yaml"))
        if (run.cell.name == "BootPIG") == (cell == "as shipped")
    ]
    assert choose(tried) == tuple(getattr(config.evaluate, name) for name in SCALES)


def test_the_best_learning_rate_is_bracketed() -> None:
    assert next_rate([1e-4, 3e-4, 9e-4], 3e-4) is None
    assert next_rate([1e-4, 3e-4, 9e-4], 9e-4) == 2.7e-3
    assert next_rate([3e-4, 9e-4], 3e-4) == 1e-4
    assert next_rate([3e-4], 3e-4) == 1e-4
    assert next_rate([1e-4, 2e-4, 3e-4, 4e-4, 5e-4], 5e-4) is None


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
