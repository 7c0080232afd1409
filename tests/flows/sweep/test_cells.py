"""The file of a sweep: its cells, and one line for each thing that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bootpig.flows.cli.main import main
from bootpig.flows.loading import load_config
from bootpig.flows.sweep.cells import MOST_RUNS, expand, sweep_digest
from bootpig.flows.sweep.file import load_sweep, parse_sweep

ONE, THREE = {"name": "one", "set": {"evaluate.references": 1}}, {"name": "three", "set": {"evaluate.references": 3}}


def sweep(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"name": "references", "base": "toy", "cells": [ONE, THREE]}
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def test_cells_and_seeds_make_runs_seed_by_seed() -> None:
    runs = expand(parse_sweep(sweep(seeds={"train.seed": [0, 5], "evaluate.seed": [7, 8]}, baseline="one")))
    assert [run.label for run in runs[:2]] == [
        "one, train.seed=0, evaluate.seed=7",
        "three, train.seed=0, evaluate.seed=7",
    ]
    assert len(runs) == 4
    last = runs[-1].config
    assert (last.evaluate.references, last.train.seed, last.evaluate.seed) == (3, 5, 8)
    assert {run.cell.baseline for run in runs} == {"one"}
    assert last.name == "references-three-5-8"
    assert last.root == load_config("toy").root


def test_a_grid_is_crossed_with_cells_and_the_baseline_keeps_what_it_leaves_out() -> None:
    grid = {"train.steps": [100, 300], "train.warmup_steps": [3]}
    runs = expand(parse_sweep(sweep(grid=grid, baseline="one")))
    assert [(run.cell.name, run.cell.baseline) for run in runs] == [
        ("one, train.steps=100", "one, train.steps=100"),
        ("one, train.steps=300", "one, train.steps=300"),
        ("three, train.steps=100", "one, train.steps=100"),
        ("three, train.steps=300", "one, train.steps=300"),
    ]
    assert {run.config.train.warmup_steps for run in runs} == {3}
    baseline = {"name": "one", "set": {"train.steps": 300}}
    assert {run.cell.baseline for run in expand(parse_sweep(sweep(grid=grid, baseline=baseline)))} == {
        "one, train.steps=300"
    }
    alone = expand(parse_sweep(sweep(cells=None, grid=grid, baseline={"set": {"train.steps": 100}})))
    assert [(run.cell.name, run.cell.baseline) for run in alone] == [
        ("train.steps=100", "train.steps=100"),
        ("train.steps=300", "train.steps=100"),
    ]


def test_a_section_can_be_null_and_names_can_be_any_text(tmp_path: Path) -> None:
    cells = [{"name": "ohne Auswahl 🐷", "set": {"select": None}}, {"name": "豚", "set": {}}]
    runs = expand(parse_sweep(sweep(base="toy", cells=cells, root=str(tmp_path))))
    assert runs[0].config.select is None and runs[1].config.select is not None
    assert [run.config.name for run in runs] == ["references-ohne-auswahl", "references-cell-2"]
    assert {run.config.root for run in runs} == {str(tmp_path)}


def test_the_base_is_found_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "science"
    folder.mkdir()
    (folder / "mine.yaml").write_text(Path("configs/toy.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep(base="mine.yaml")))
    monkeypatch.chdir(tmp_path)
    assert len(expand(load_sweep("science/sweep.yaml"))) == 2


def test_the_digest_follows_what_is_run_and_not_how() -> None:
    def of(**changes: Any) -> str:
        return sweep_digest(expand(parse_sweep(sweep(**changes))))

    first = of()
    assert (
        of(baseline="one", report=["dino"], root="elsewhere", grid={"threads": [1], "runner": ["processes"]}) == first
    )
    assert of(cells=[ONE, {**THREE, "name": "drei"}]) != first
    assert of(seeds={"train.seed": [1]}) != first
    assert of(grid={"train.steps": [700]}) != first


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"cells": None}, "cells: missing → give cells, or a grid, or both"),
    ({"cells": []}, "cells: missing → give cells, or a grid, or both"),
    ({"celsl": []}, "celsl: [] → there is no such setting; did you mean 'cells'?"),
    ({"cells": [ONE, {**THREE, "sett": {}}]}, "cells.1.sett: {} → there is no such setting"),
    ({"cells": [ONE, {"name": "x", "set": {"evaluate.refs": 2}}]}, "cells 'x': evaluate.refs: 2 → there is no such"),
    ({"cells": [ONE, {"name": "x", "set": {"evaluate.steps": 0}}]}, "cells 'x': evaluate.steps: 0 → must"),
    ({"cells": [ONE, {"name": "x", "set": {"seed.y": 1}}]}, "cells 'x': seed.y: 1 → 'seed' is a value"),
    ({"cells": [ONE, {"name": "x", "set": {"train": None}}]}, "cells 'x': train: None → must be a valid"),
    ({"cells": [ONE, {**ONE, "name": "uno"}]}, "cells: 'one' and 'uno' → have the same settings; remove one"),
    ({"cells": [ONE, {**THREE, "name": "one"}]}, "cells: 'one' → is given twice; names must differ"),
    ({"cells": [ONE, {**THREE, "name": " x"}]}, "cells.1.name: ' x' → has blanks at an end"),
    ({"cells": [ONE, {**THREE, "name": "x\u200b"}]}, "cells.1.name: 'x\\u200b' → has blanks at an end"),
    ({"cells": [ONE, {**THREE, "name": 3}]}, "cells.1.name: 3 → must be a valid string; write it in quotes"),
    ({"cells": [ONE, {"name": "x", "set": {"root": "r"}}]}, "cells 'x': 'root' → all runs of a sweep share one"),
    ({"cells": [ONE, {"name": "x", "set": {"name": "n"}}]}, "cells 'x': 'name' → each run is named after its cell"),
    ({"grid": {"root": ["a", "b"]}}, "grid: 'root' → all runs of a sweep share one store"),
    ({"grid": {"train.steps": []}}, "grid.train.steps: [] → List should have at least 1 item"),
    ({"grid": {"train.steps": 100}}, "grid.train.steps: 100 → must be a valid list"),
    ({"grid": {"train.steps": [100, 100]}}, "cells: 'one, train.steps=100' → is the name of two cells"),
    ({"cells": [ONE], "grid": {"evaluate.references": [1, 2]}}, "cells 'one': 'evaluate.references' → is in grid too"),
    ({"grid": {"train.steps": list(range(1, 5001))}}, f"grid: 10000 cells → a sweep has at most {MOST_RUNS} runs"),
    ({"seeds": {"train.seed": []}}, "seeds.train.seed: [] → List should have at least 1 item"),
    ({"seeds": {"train.seed": [1, 2, 1]}}, "seeds: train.seed has the seed 1 twice"),
    (
        {"seeds": {"train.seed": [1], "seed": [1, 2]}},
        "seeds: seed has 2, train.seed has 1; fields that change together",
    ),
    (
        {"seeds": {"train.steps": [1, 2]}},
        "seeds: 'train.steps' → is not a seed of the configuration; choose from seed,",
    ),
    ({"seeds": {"train.sede": [1, 2]}}, "seeds: 'train.sede' → is not a seed of the configuration"),
    ({"seeds": {"train.seed": [-1, 2]}}, "train.seed: -1 → must be greater than or equal to 0"),
    ({"seeds": {"train.seed": [0.5]}}, "seeds.train.seed.0: 0.5 → must be a valid integer"),
    ({"seeds": {"train.seed": [True]}}, "seeds.train.seed.0: True → must be a valid integer"),
    ({"seeds": {"train.seed": 3}}, "seeds.train.seed: 3 → must be a valid list"),
    ({"baseline": "two"}, "baseline: 'two' → names no cell; choose from 'one', 'three'"),
    ({"baseline": {"set": {"train.steps": 5}}}, "baseline.set: train.steps=5 → is no value of grid"),
    ({"baseline": ["one"]}, "baseline: ['one'] → must be the name of a cell, or have `name` and `set`"),
    ({"cells": {"one": {}}}, "cells: {'one': {}} → must be a valid list"),
    ({"cells": [{"name": "x", "set": {"evaluate": {"references": 2}}}]}, "so write `evaluate.references: …`"),
    ({"cells": [{**ONE, "name": "{x}"}, {**THREE, "name": "{0.y}"}], "baseline": "y"}, "choose from '{x}', '{0.y}'"),
    ({"baseline": {}}, "baseline: → names no cell; give a name in cells"),
    ({"report": ["dino", "fid"]}, "there is no metric 'fid'; use some of clip_t"),
    ({"report": ["dino", "identity"]}, "report: 'identity' → no cell measures it; put it into evaluate.metrics"),
    ({"report": []}, "report: [] → "),
    ({"report": ["dino", "dino"]}, "a measure is given twice"),
    ({"name": "With Blanks"}, "name: 'With Blanks' → must match pattern"),
    ({"base": "nowhere.yaml"}, "base: 'nowhere.yaml' → there is no such file"),
    ({"root": "s3://key:secret@host/x"}, "root: '"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_bad_input_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep(**{"root": str(tmp_path / "store"), **changes}), allow_unicode=True))
    assert main(["sweep", str(file), "--dry-run"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert "secret" not in said.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Path("configs/toy.yaml").read_text(), "→ is the configuration of a run; give a file with `base:"),
        ("name: [", "→ fix the YAML"),
        ("- a\n- b\n", "→ must contain settings such as `base: …`"),
        ("", "→ must contain settings"),
        (None, "→ there is no such file"),
        ("name: a\nname: b\n", "the key 'name' is given twice"),
    ],
)
def test_a_file_that_is_no_sweep(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["sweep", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_sweep_is_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep(base=str(tmp_path / "sweep.yaml"))))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "→ is the file of a sweep; give the configuration of a run" in said and said.count("\n") == 1


def test_a_problem_of_the_base_is_said_once_and_others_with_their_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(Path("configs/toy.yaml").read_text().replace("  steps: 300", "  steps: 0"))
    wrong = {"name": "x", "set": {"evaluate.references": 99}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep(base="base.yaml", cells=[ONE, THREE, wrong])))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train.steps: 0 → must be greater")
    assert lines[1].startswith("cells 'x': evaluate.references: 99")
