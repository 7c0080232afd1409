"""`python -m science`: what it refuses, and the files of sweeps for another store."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from bootpig.flows.sweep.cells import expand
from bootpig.flows.sweep.file import load_sweep
from science import __main__ as command
from science.inpainting import another
from science.recipes import RECIPES, UPDATES, Recipe
from science.subjects import FOLDER
from science.tune import choose, subjects_of


@pytest.mark.parametrize("asked", [["sweeps", "datas"], ["train", "ours"], ["page", "ours"], ["draw"]])
def test_unknown_names_end_with_code_2(asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["science", *asked])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_a_sweep_can_have_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WORK", tmp_path)
    for name in command.SWEEPS:
        shipped, moved = (load_sweep(command.sweep_file(name, root)) for root in (None, str(tmp_path / "store")))
        assert shipped.root is None
        assert moved == shipped.model_copy(update={"root": str(tmp_path / "store")})
        with_threads = load_sweep(command.sweep_file(name, None, 1))
        assert with_threads == shipped.model_copy(update={"grid": {**shipped.grid, "threads": [1]}})
        assert [run.cell.name for run in expand(with_threads)] == [run.cell.name for run in expand(shipped)]


def test_every_sweep_and_method_runs_once() -> None:
    assert {path.stem for path in command.HERE.glob("*.yaml")} == set(command.SWEEPS)
    assert set(RECIPES) == set(command.METHODS) == {"dreambooth", "dreambooth-lora", "textual-inversion", "ip-adapter"}


def test_a_choice_prefers_the_subject_among_those_that_follow_the_caption() -> None:
    copies, fair, weak = (Recipe(100, rate, 2.0) for rate in (1e-3, 1e-4, 1e-5))
    rows = [
        (copies, {"dino": 0.9, "clip_t_ratio": 0.7}),
        (fair, {"dino": 0.6, "clip_t_ratio": 0.98}),
        (weak, {"dino": 0.1, "clip_t_ratio": 1.0}),
    ]
    assert choose(rows) is fair
    assert choose(rows[:1]) is copies
    assert choose([rows[0], (weak, {"dino": 0.9, "clip_t_ratio": 0.8})]) is weak


@pytest.mark.parametrize("best", [1e-3, 3e-4, 9e-3])
def test_tuning_tries_the_prior_then_rates_then_updates(
    best: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from science import tune as science_tune

    trained: list[Recipe] = []

    def scores(rows: Recipe, _: object) -> dict[str, float]:
        without_prior = 0.1 * (trained[-1].prior_loss_weight == 0)
        return {"clip_t": 1.0, "dino": without_prior + 1.0 / (1 + abs(math.log(trained[-1].learning_rate / best)))}

    monkeypatch.setattr(science_tune, "subjects_of", lambda *_: [])
    monkeypatch.setattr(science_tune, "Judge", lambda _: scores)
    monkeypatch.setattr(science_tune, "drawings", lambda *_: [])
    monkeypatch.setattr(science_tune, "draw_text_only", lambda _: [])
    monkeypatch.setattr(science_tune, "draw_rival", lambda *_: [])
    monkeypatch.setattr(science_tune, "train", lambda _, subjects, target, recipe, root: trained.append(recipe))
    # the first call, of text only, has no trained recipe yet
    trained.append(RECIPES["dreambooth-lora"])
    science_tune.tune("dreambooth-lora", 2, None, tmp_path / "tuning.json")
    assert [recipe.prior_loss_weight for recipe in trained[1:]] == [1.0] + [0.0] * (len(trained) - 2)
    assert len({str(recipe) for recipe in trained[1:]}) == len(trained) - 1
    rates = [recipe.learning_rate for recipe in trained[2:] if recipe.updates == trained[0].updates]
    assert min(rates) < best < max(rates)
    after = trained[2 + len(rates) :]
    assert [recipe.updates for recipe in after] == [n for n in UPDATES["dreambooth-lora"] if n != trained[0].updates]
    assert len({recipe.learning_rate for recipe in after}) == 1
    chosen = json.loads((tmp_path / "tuning.json").read_text())["dreambooth-lora"]["chosen"]
    assert f"learning rate {after[0].learning_rate:g}" in chosen


def test_moved_references_show_the_subject_elsewhere(tmp_path: Path) -> None:
    from science.subjects import write_moved

    write_moved(tmp_path / "moved", FOLDER)
    same = {path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file()}
    boxes = set()
    for name in same:
        moved, shipped = tmp_path / "moved" / name, FOLDER / name
        if name.name != "00.png":
            assert moved.read_bytes() == shipped.read_bytes()
            continue
        now, before = (ImageOps.invert(Image.open(file).convert("RGB")).getbbox() for file in (moved, shipped))
        assert now is not None and before is not None
        assert now[2] - now[0] < 0.75 * (before[2] - before[0])
        boxes.add((now[0] > 20, now[1] > 20))
    assert len(boxes) == 4, "in all corners"


def test_inpainting_repaints_another_subject_of_the_kind() -> None:
    from bootpig.stages.evaluate.subjects import read_subjects

    for subject in read_subjects(FOLDER, (), 1)[:4]:
        picture, mask, caption = another(subject)
        assert picture.size == mask.size == (64, 64)
        assert subject.object in caption
        assert 0.02 < sum(mask.histogram()[255:]) / 64**2 < 0.6
        assert another(subject)[0].tobytes() == picture.tobytes()


def test_subjects_for_tuning_are_spread_over_all_kinds(tmp_path: Path) -> None:
    from science.subjects import VALIDATION, VALIDATION_SEED, write_folder

    write_folder(tmp_path / "validation", VALIDATION, VALIDATION_SEED)
    chosen = subjects_of(tmp_path / "validation", 6)
    assert len({subject.object for subject in chosen}) == 6
    held_out = {path.read_bytes() for path in FOLDER.rglob("*.png")}
    assert not held_out & {path.read_bytes() for subject in chosen for path in subject.references + subject.real}


def test_a_sweep_that_cannot_be_read_costs_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from science import page, results, terminal

    written: list[results.Results] = []
    for unreadable in ({"ours": "cells: wrong"}, {}):
        found = results.Results({}, unreadable)
        monkeypatch.setattr(results, "read_results", lambda *_, found=found: found)
        monkeypatch.setattr(command, "write_record", written.append)
        monkeypatch.setattr(page, "write_page", lambda *_: Path("page"))
        monkeypatch.setattr(terminal, "show", lambda _: None)
        command.write(None)
    assert [each.unreadable for each in written] == [{}]
