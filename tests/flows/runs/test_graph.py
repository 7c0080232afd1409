"""status and the choice of stages follow the graph of the configuration, not the seven stages of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootpig.flows.runs.status import status
from bootpig.flows.selection import known_stage, span
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.survey import graph_of
from bootpig.stages.registry import STAGES
from tests.stages.engine import test_graph as graphs


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    own = dict(STAGES)
    STAGES.clear()
    STAGES.update(graphs.STAGES)
    yield
    # in their order, which later tests depend on
    STAGES.clear()
    STAGES.update(own)


def test_status_knows_optional_stages_and_reduce_stages_in_the_middle(tmp_path: Path) -> None:
    work = graphs.engine(tmp_path)
    graphs.run(work)
    facts = status(work.config)["stages"]
    assert list(facts) == ["letters", "upper", "left", "right", "join", "pick", "learn"]
    assert all(stage["units"]["complete"] == (1 if name in ("pick", "learn") else 2) for name, stage in facts.items())
    spiced = status(graphs.engine(tmp_path, spice={"text": "y"}).config)["stages"]
    assert {name: stage["units"]["pending"] for name, stage in spiced.items() if stage["units"]["pending"]} == {
        "spice": 2,
        "left": 2,
        "join": 2,
        "pick": 1,
        "learn": 1,
    }


def test_a_stage_that_is_left_out_cannot_be_chosen(tmp_path: Path) -> None:
    graph = graph_of(graphs.engine(tmp_path).config)
    assert span(graph, "left", "pick") == ("left", "join", "pick")
    with pytest.raises(InputError, match="there is no such stage"):
        known_stage("--only", "spice", graph)
