"""Held-out samples: which they are, that they are never trained on, and what is measured on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train.chosen import held_out_place
from bootpig.stages.train.dataset import ShardLoader
from bootpig.stages.train.validation import MEASURED, Validation, usual_interval
from tests.stages.train.test_train import equal, log, recipe, train
from tests.stages.train.training_data import save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return with_rows(write_units(tmp_path_factory.mktemp("units"), (5, 4, 3)))


def with_rows(data: ReduceInput) -> ReduceInput:
    """The rows that the engine gives: those of the shard, and one that was rejected before each."""
    units = {unit.unit: unit for unit in data.units}

    def rows(unit: int) -> list[dict[str, Any]]:
        ids = [sample.id for sample in ShardLoader(replace(data, units=[units[unit]]), seed=0, batch_size=1).first(99)]
        return [row for i in ids for row in ({"id": f"x{i}", "status": "rejected"}, {"id": i, "status": "ok"})]

    return replace(data, rows=rows)


def loader(data: ReduceInput, held_out: float) -> ShardLoader:
    return ShardLoader(data, seed=1, batch_size=2, window=5, held_out=held_out)


def test_the_id_decides_and_held_out_samples_are_in_no_batch(data: ReduceInput) -> None:
    everything = {sample.id for sample in loader(data, 0.0).first(99)}
    split = loader(data, 0.4)
    held = [sample.id for sample in split.held_samples(99)]
    assert sorted(held) == sorted(i for i in everything if held_out_place(i) < 0.4)
    assert 0 < len(held) < len(everything)
    seen = [i for step in range(40) for i in split.batch(step).ids]
    assert set(seen) == everything - set(held)
    fewer = {sample.id for sample in loader(replace(data, units=data.units[:2]), 0.4).held_samples(99)}
    assert fewer < set(held), "a data set that grows keeps what it has held out"
    assert [s.id for s in split.held_samples(2)] == held[:2] == sorted(held, key=held_out_place)[:2]


def test_a_unit_whose_samples_are_all_held_out_is_left_out(tmp_path: Path) -> None:
    data = with_rows(write_units(tmp_path, (1, 30)))
    (alone,) = (row["id"] for row in data.rows(data.units[0].unit) if row["status"] == "ok")
    split = loader(data, held_out_place(alone) + 1e-9)
    assert [unit.unit for unit in split.units] == [data.units[1].unit]
    assert split.held_samples(99)[-1].id == alone
    assert alone not in {i for step in range(40) for i in split.batch(step).ids}


def test_nothing_left_is_one_line_and_nothing_held_out_a_warning(
    data: ReduceInput, caplog: pytest.LogCaptureFixture
) -> None:
    assert loader(data, 1e-6).held == []
    assert "train.validation: 1e-06 holds out none of the 12 encoded samples, so that nothing tells" in caplog.text
    with pytest.raises(InputError, match=r"^train.global_batch_size: 12 is more than the \d+ encoded samples that are"):
        ShardLoader(data, seed=1, batch_size=12, held_out=0.4)


def test_settings_without_effect_are_refused(base: Path) -> None:
    with pytest.raises(ValidationError, match="validate_every: no effect without held-out samples"):
        recipe(base, validate_every=5)
    assert "validation" not in recipe(base).hashed()
    assert recipe(base, validation=0.1).hashed()["validation"] == 0.1
    assert "validate_every" not in recipe(base, validation=0.1, validate_every=3).hashed()


def test_measuring_changes_nothing_and_is_logged(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    often = train(recipe(base, validation=0.4, validate_every=1), data, tmp_path / "often")
    seldom = train(recipe(base, validation=0.4, validate_every=6), data, tmp_path / "seldom")
    assert equal(often, seldom)
    readings = {int(line["step"]): line for line in log(tmp_path / "often") if "reference_gain" in line}
    assert list(readings) == [1, 2, 3, 4, 5, 6]
    (last,) = (line for line in log(tmp_path / "seldom") if "reference_gain" in line)
    assert last["reference_gain"] == readings[6]["reference_gain"]
    for line in readings.values():
        gain = line["validation_loss_without_reference"] - line["validation_loss"]
        assert line["reference_gain"] == pytest.approx(gain, abs=1e-6)
        assert line["reference_gain_low"] < line["reference_gain"] < line["reference_gain_high"]
    assert not equal(often, train(recipe(base), data, tmp_path / "all")), "fewer samples are trained on"


class Known(torch.nn.Module):
    """An objective whose losses are known: 2 without the reference, and with it 1 below or equal."""

    def __init__(self, helps: float) -> None:
        super().__init__()
        self.helps = helps
        self.seen: list[dict[str, Any]] = []

    def losses(self, **given: Any) -> torch.Tensor:
        self.seen.append(given)
        wobble = torch.linspace(-0.1, 0.1, len(given["use_reference"]))
        return 2.0 - (self.helps + wobble if given["use_reference"][0] else 0.0 * wobble)


@pytest.mark.parametrize("helps", [1.0, 0.0])
def test_the_gain_is_the_difference_and_its_interval_tells_whether_it_is_zero(data: ReduceInput, helps: float) -> None:
    objective: Any = Known(helps)
    samples = loader(data, 0.4).held_samples(MEASURED)
    validation = Validation(objective, samples, timesteps=1000, seed=0, clean=False)
    reading = validation(16, torch.device("cpu"))
    assert reading.loss_without == 2.0
    assert reading.gain == pytest.approx(helps, abs=1e-6)
    assert (reading.low > 0) == (helps > 0)
    assert objective.training
    timesteps = torch.cat([given["timesteps"] for given in objective.seen[: MEASURED // 16]])
    assert timesteps.tolist() == sorted(timesteps.tolist())
    assert (timesteps.min(), timesteps.max()) == (7, 992)
    again = Known(helps)
    Validation(again, samples, timesteps=1000, seed=0, clean=False)(MEASURED, torch.device("cpu"))  # type: ignore[arg-type]
    noise = torch.cat([given["noise"] for given in objective.seen[: MEASURED // 16]])
    assert torch.equal(noise, again.seen[0]["noise"]), "the same noise each time, whatever the batch"


def test_a_reference_that_is_not_used_is_a_warning(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bootpig.stages.train.objective.Objective.losses", Known(0.0).losses)
    train(recipe(base, validation=0.4, validate_every=1), data, tmp_path / "unused")
    said = [record.message for record in caplog.records if "it is not used yet" in record.message]
    assert len(said) == 1
    assert said[0].startswith("train: after 2 of 6 updates the reference lowers the held-out loss by ")
    caplog.clear()
    monkeypatch.setattr("bootpig.stages.train.objective.Objective.losses", Known(1.0).losses)
    train(recipe(base, validation=0.4, validate_every=1), data, tmp_path / "used")
    assert "it is not used yet" not in caplog.text


def test_the_usual_interval_takes_two_percent() -> None:
    assert [usual_interval(size) for size in (4, 32, 64)] == [480, 60, 30]


def test_the_log_is_json(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    train(recipe(base, validation=0.4, validate_every=3, log_every=2), data, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line, "reference_gain" in line) for line in lines] == [
        (2, True, False),
        (3, False, True),
        (4, True, False),
        (6, True, True),
    ]
