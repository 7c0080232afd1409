"""The select stage in the engine: what a changed threshold makes again, what train reads, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from safetensors.numpy import save

from bootpig.stages.engine.contract import InputError, ReduceInput, Sample, UnitRef
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.shardio import pack
from bootpig.stages.export.records import DataSet
from bootpig.stages.select.config import SelectConfig
from bootpig.stages.select.rules import SCORES
from bootpig.stages.select.stage import DECISIONS, FACTS, SELECTED, Select, read_selected
from bootpig.stages.train.dataset import ShardLoader
from bootpig.storage.errors import CorruptPart
from tests.stages.doubles import config, doubles, image_bytes  # noqa: F401
from tests.stages.train.test_validation import with_rows
from tests.stages.train.training_data import write_units

MEASURED = {"clip": None, "dino": None}
"""A score section without models."""


def engine(root: Path, score: dict[str, Any] | None = MEASURED, **rules: Any) -> Engine:
    return Engine(config(root, score=score, **({"select": rules} if rules else {})))


def run(work: Engine) -> list[str]:
    """Run all stages. Returns the names of those that made something."""
    made = []
    for stage in work.graph.stages:
        units = work.units() if work.graph.is_map(stage) else [0]
        for unit in units:
            report = work.run_unit(stage, unit) if work.graph.is_map(stage) else work.run_reduce(stage)
            assert report.state in ("done", "cached"), report.message
            made += [stage] if report.state == "done" else []
    return list(dict.fromkeys(made))


def trained_on(work: Engine) -> list[str]:
    result = work.survey("train").result
    assert result is not None
    ids: list[str] = json.loads(work.root.read(f"{result.path}/model/ids.json"))
    return ids


@pytest.mark.usefixtures("doubles")
def test_a_threshold_makes_select_and_what_is_below_again(tmp_path: Path) -> None:
    plain = Engine(config(tmp_path))
    assert run(plain) == ["caption", "synthesize", "segment", "augment", "encode", "train", "evaluate"]
    everything = trained_on(plain)
    scoring = engine(tmp_path)
    assert scoring.graph.upstream["train"] == ("encode",)
    assert run(scoring) == ["score"], "scores alone change no model"
    before = image_bytes(tmp_path)
    strict = engine(tmp_path, min_sharpness="50%")
    assert run(strict) == ["select", "train", "evaluate"]
    chosen = trained_on(strict)
    assert chosen == [key for key in everything if key in chosen] and 0 < len(chosen) < len(everything)
    assert run(engine(tmp_path, min_sharpness="40%")) == ["select", "train", "evaluate"]
    assert image_bytes(tmp_path) == before
    assert run(strict) == run(plain) == []
    result = strict.survey("select").result
    assert result is not None and set(result.files) == {SELECTED, FACTS, DECISIONS}
    assert read_selected(tmp_path / result.path) == chosen
    rows = pq.read_table(tmp_path / result.path / DECISIONS).to_pylist()
    assert [row["id"] for row in rows if row["selected"]] == chosen
    assert {tuple(row["dropped_by"]) for row in rows} == {(), ("min_sharpness",)}


@pytest.mark.usefixtures("doubles")
def test_a_selection_of_nothing_is_a_result(tmp_path: Path) -> None:
    work = engine(tmp_path, min_area=0.99)
    assert {"select", "train"} <= set(run(work)), "the run decides that train does not start, see tests/flows"
    result = work.survey("select").result
    assert result is not None and read_selected(tmp_path / result.path) == []
    facts = json.loads(work.root.read(f"{result.path}/{FACTS}"))
    assert facts["selected"] == 0 and facts["rules"][0]["dropped"] == facts["samples"] > 0
    rows = pq.read_table(tmp_path / result.path / DECISIONS).to_pylist()
    assert {tuple(row["dropped_by"]) for row in rows} == {("min_area",)}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"select": {"min_area": 0.1}}, "select: reads scores, but there is no score section"),
        (
            {"score": MEASURED, "select": {"min_caption_score": 0.9, "max_detections": 1}},
            "select.min_caption_score: 0.9 → no stage makes it; set score.clip, or remove it; "
            "select.max_detections: 1.0 → no stage makes it; set score.detector",
        ),
        ({"score": {"dino": None}, "select": {"min_head_score": "5%"}}, "set score.head"),
        ({"score": MEASURED, "select": {"max_similarity": 0.9}}, "'dino' → no stage makes it; set score.dino"),
    ],
)
def test_a_score_that_no_stage_makes(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        config(tmp_path, **sections)
    assert message in str(caught.value)
    assert caught.value.error_count() == 1


def scores_of(embeddings: np.ndarray, name: str = "dino") -> ReduceInput:
    """Score's units of two samples each."""
    samples = [
        Sample(f"{i:04d}", i // 2, {}, {"safetensors": save({name: row.astype(np.float16)})})
        for i, row in enumerate(embeddings)
    ]
    units = {unit: samples[2 * unit : 2 * unit + 2] for unit in range(-(-len(samples) // 2))}
    columns = dict.fromkeys(SCORES)
    rows = {
        unit: [{"id": s.id, "unit": unit, "status": "ok", "object": "mug", **columns, "sharpness": 0.5} for s in own]
        for unit, own in units.items()
    }
    refs = [UnitRef(unit, str(unit), len(own)) for unit, own in units.items()]
    return ReduceInput(refs, lambda unit: pack(units[unit]), None, {}, rows.__getitem__)


def test_near_duplicates_are_found_in_the_stored_embeddings() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(5, 32))
    embeddings[3] = embeddings[0] + 0.01 * embeddings[1]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    stage = Select(SelectConfig(max_similarity=0.98), seed=0)
    outcome = stage.outcome(scores_of(embeddings), lambda done, total, text: None)
    assert outcome.ids == ["0000", "0001", "0002", "0004"]
    with pytest.raises(CorruptPart, match="score unit 0: the dino embedding of sample 0000 is not readable"):
        stage.outcome(scores_of(embeddings, "clip"), lambda done, total, text: None)


def test_train_reads_only_what_is_selected(tmp_path: Path) -> None:
    data = with_rows(write_units(tmp_path, (5, 4, 3)))
    everything = [s.id for s in ShardLoader(data, seed=1, batch_size=2).first(99)]
    chosen = frozenset([*everything[1:4], *everything[10:]])  # none of the second unit
    loader = ShardLoader(data, seed=1, batch_size=2, window=5, chosen=chosen)
    assert {i for step in range(20) for i in loader.batch(step).ids} == chosen
    assert [s.id for s in loader.first(99)] == sorted(chosen)
    assert loader.order.samples == len(chosen)
    held = ShardLoader(data, seed=1, batch_size=1, held_out=0.5, chosen=chosen)
    kept_out = {s.id for s in held.held_samples(99)}
    assert kept_out < chosen and kept_out
    assert not kept_out & {i for step in range(20) for i in held.batch(step).ids}
    with pytest.raises(
        InputError, match="6 is more than the 5 encoded samples that select has chosen; lower it, loosen"
    ):
        ShardLoader(data, seed=1, batch_size=6, chosen=chosen)


@pytest.mark.usefixtures("doubles")
def test_an_export_holds_what_is_selected(tmp_path: Path) -> None:
    work = engine(tmp_path, min_sharpness="50%")
    for stage in work.graph.maps():
        for unit in work.units():
            work.run_unit(stage, unit)
    names = [*work.graph.maps(), "select"]
    with pytest.raises(InputError, match="has no finished data set: it did not run select"):
        DataSet.of_surveys(work.root, work.config, work.survey_all(names))
    work.run_reduce("select")
    surveys = work.survey_all(names)
    result = surveys["select"].result
    assert result is not None
    data = DataSet.of_surveys(work.root, work.config, surveys)
    ids = [record.id for unit in data.units for record in data.records(unit)]
    assert ids == [key for unit in data.units for key in data.ids(unit)] == read_selected(tmp_path / result.path)
    assert data.total == len(ids)
    plain = Engine(config(tmp_path))
    everything = DataSet.of_surveys(plain.root, plain.config, plain.survey_all(plain.graph.maps()))
    assert everything.total > data.total and "selected" not in everything.identity
