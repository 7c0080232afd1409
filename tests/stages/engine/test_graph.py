"""A graph of stages: a diamond, an optional stage, a reduce stage in the middle.

letters ─► upper ─┬─► left ──┬─► join ──┬─► train
                  └─► right ─┘    └► pick ┘
(spice, between upper and left, is optional)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import (
    InputError,
    MapStage,
    Progress,
    ReduceInput,
    ReduceStage,
    Sample,
    SourceContext,
    StageConfig,
)
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.graph import Graph
from bootpig.stages.engine.saved import Checkpoints
from bootpig.storage.shards import read_shard
from tests.stages import doubles


class Setting(StageConfig):
    text: str = ""


class GraphConfig(PipelineConfig):
    """The chain's settings, and those of the stages below."""

    letters: Setting = Setting()
    upper: Setting = Setting()
    spice: Setting | None = None
    left: Setting = Setting()
    right: Setting = Setting()
    join: Setting = Setting()
    pick: Setting | None = Setting()
    learn: Setting = Setting()


class _Map(MapStage):
    config_class = Setting
    reasons: ClassVar = {"odd": "an odd one"}

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [self.make(sample) for sample in samples]

    def make(self, sample: Sample) -> Sample:
        return sample.ok(files={"txt": sample.files["txt"] + f" {self.name}{self.config.text}".encode()})


class Letters(_Map):
    name = "letters"
    columns: ClassVar = pa.schema([("index", pa.int64())])

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        return [Sample(f"{index:04d}", unit, {"n": index}, {"txt": b"a"}) for index in indices]

    def make(self, sample: Sample) -> Sample:
        return sample.ok(files=sample.files, index=sample.meta["n"])


class Upper(_Map):
    name, upstream = "upper", ("letters",)


class Spice(_Map):
    name, upstream = "spice", ("upper",)


class Left(_Map):
    name, upstream = "left", ("spice",)


class Right(_Map):
    name, upstream = "right", ("upper",)

    def make(self, sample: Sample) -> Sample:
        return sample.rejected("odd") if sample.meta["n"] % 2 else super().make(sample)


class Join(_Map):
    name, upstream = "join", ("left", "right")

    def make(self, sample: Sample) -> Sample:
        other = sample.beside.get("right")
        return sample.ok(files={"txt": sample.files["txt"] + b" + " + (other.files["txt"] if other else b"-")})


class _Reduce(ReduceStage):
    config_class = Setting


class Pick(_Reduce):
    name, upstream = "pick", ("join",)

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        rows = [row["id"] for unit in data.units for row in data.rows(unit.unit) if row["status"] == "ok"]
        (workdir / "chosen.json").write_text(json.dumps(rows[:: int(self.config.text or 1)]))


class Learn(_Reduce):
    name, upstream = "learn", ("join", "pick")

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        texts = {key: files["txt"] for unit in data.units for key, files in read_shard(data.shard(unit.unit))}
        chosen = list(texts)
        if "pick" in data.beside:
            result = data.beside["pick"].result
            assert result is not None
            chosen = json.loads((result / "chosen.json").read_text())
        (workdir / "model").write_bytes(b"\n".join(texts[key] for key in chosen))


STAGES = {stage.name: stage for stage in (Letters, Upper, Spice, Left, Right, Join, Pick, Learn)}


def engine(root: Path, **settings: object) -> Engine:
    values = doubles.config(root).model_dump() | {"caption": {**doubles.config(root).caption.model_dump(), "count": 10}}
    return Engine(GraphConfig.model_validate({**values, **settings}), STAGES)


def run(work: Engine) -> list[tuple[str, int]]:
    """Run all stages in order. Returns what was made."""
    made = []
    for stage in work.graph.stages:
        if work.graph.is_map(stage):
            reports = [work.run_unit(stage, unit) for unit in work.units()]
        else:
            reports = [work.run_reduce(stage)]
        assert all(report.state in ("done", "cached") for report in reports), reports
        made += [(report.stage, report.unit) for report in reports if report.state == "done"]
    return made


def model(work: Engine) -> list[str]:
    result = work.survey("learn").result
    assert result is not None
    return (work.root.read(f"{result.path}/model")).decode().splitlines()


def test_a_diamond_with_a_reduce_stage_in_the_middle(tmp_path: Path) -> None:
    work = engine(tmp_path)
    assert len(run(work)) == 5 * 2 + 2
    assert model(work)[:2] == ["a upper left + a upper right", "a upper left + -"]
    assert run(engine(tmp_path)) == []
    assert all(set(survey.units.values()) == {"complete"} for survey in work.survey_all().values())
    assert all(work.verify(stage) == [] for stage in work.graph.stages)


def test_a_change_goes_as_far_down_as_it_must(tmp_path: Path) -> None:
    run(engine(tmp_path))
    assert run(engine(tmp_path, pick={"text": "2"})) == [("pick", 0), ("learn", 0)]
    assert run(engine(tmp_path, right={"text": "!"})) == [
        *[(stage, unit) for stage in ("right", "join") for unit in (0, 1)],
        ("pick", 0),
        ("learn", 0),
    ]


@pytest.mark.parametrize("branch", ["left", "right"])
def test_a_unit_is_stale_when_any_unit_that_it_reads_has_changed(tmp_path: Path, branch: str) -> None:
    work = engine(tmp_path)
    run(work)
    survey = work.survey(branch)
    work.root.remove(f"{survey.path}/{survey.markers[1].payload}")
    assert work.survey(branch).units == {0: "complete", 1: "stale"}
    assert work.survey("join").units == {0: "complete", 1: "stale"}, "what it was made from is not there"
    assert work.run_unit("join", 1, force=True).state == "failed"
    assert run(engine(tmp_path)) == [(branch, 1)], "the same bytes again, so nothing below is out of date"


def test_an_optional_stage_is_read_through(tmp_path: Path) -> None:
    plain = engine(tmp_path)
    assert plain.graph.upstream["left"] == ("upper",) and "spice" not in plain.graph.stages
    run(plain)
    spiced = engine(tmp_path, spice={"text": "y"})
    assert spiced.graph.upstream["left"] == ("spice",)
    made = run(spiced)
    assert [name for name, unit in made if unit == 0] == ["spice", "left", "join", "pick", "learn"]
    assert model(spiced)[0] == "a upper spicey left + a upper right"


def test_an_optional_stage_beside_the_line_is_not_read(tmp_path: Path) -> None:
    work = engine(tmp_path, pick=None)
    assert work.graph.upstream["learn"] == ("join",)
    run(work)
    assert len(model(work)) == 10


def test_a_reduce_stage_waits_for_all_units(tmp_path: Path) -> None:
    work = engine(tmp_path)
    for stage in ("letters", "upper", "left", "right"):
        for unit in work.units():
            work.run_unit(stage, unit)
    work.run_unit("join", 0)
    report = work.run_reduce("pick")
    assert report.state == "failed"
    assert report.message.startswith("pick: not started, 1 of 2 units of join are not complete (1); run again")
    partial = engine(tmp_path, train_on_partial=True)
    assert partial.run_reduce("pick").state == "done" and partial.run_reduce("learn").state == "done"


def test_the_graph_answers_for_what_is_above_and_below() -> None:
    graph = Graph.of(STAGES)
    assert graph.above(["right"]) == ("letters", "upper", "right")
    assert graph.below("left") == ("left", "join", "pick", "learn")
    assert graph.span("left", "join") == ("left", "join")
    assert graph.maps() == ("letters", "upper", "spice", "left", "right", "join")
    with pytest.raises(InputError, match="does not depend on"):
        graph.span("left", "right")


def test_an_impossible_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="does not come before it"):
        Graph.of({"upper": Upper, "letters": Letters})
    with pytest.raises(ValueError, match="all stages that it reads are left out"):
        Graph.of(STAGES, {"letters"})

    class Late(_Map):
        name, upstream = "late", ("pick",)

    with pytest.raises(ValueError, match="a map stage cannot read 'pick'"):
        Graph.of({**STAGES, "late": Late})
