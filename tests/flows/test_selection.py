"""Selecting stages and units."""

from __future__ import annotations

import pytest

from bootpig.flows.selection import data_stages, known_units, parse_units, span
from bootpig.flows.stage_run import numbers
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.graph import Graph
from bootpig.stages.registry import STAGES

GRAPH = Graph.of(STAGES, {"pictures", "view", "score", "select"})


def test_span_is_inclusive_and_in_order() -> None:
    assert span(GRAPH, "segment", "encode") == ("segment", "augment", "encode")
    assert span(GRAPH)[0] == "caption"
    assert span(GRAPH, None, "caption") == ("caption",)


def test_the_data_set_is_what_train_reads_and_all_above() -> None:
    assert data_stages(GRAPH) == ("caption", "synthesize", "segment", "augment", "encode")
    selecting = Graph.of(STAGES, {"pictures", "view"})
    assert data_stages(selecting) == ("caption", "synthesize", "segment", "score", "select", "augment", "encode")
    assert data_stages(selecting, "score") == ("score", "select")
    with pytest.raises(InputError, match="there is no such stage"):
        data_stages(GRAPH, "select")


def test_unknown_and_reversed_stages() -> None:
    with pytest.raises(InputError, match="did you mean 'segment'"):
        span(GRAPH, "segmnet")
    with pytest.raises(InputError, match="does not depend on"):
        span(GRAPH, "encode", "segment")


def test_units_are_parsed_and_checked(config: PipelineConfig) -> None:
    assert parse_units("3, 1-2,3") == [1, 2, 3]
    assert known_units(config, GRAPH, ("segment",), [3, 1, 1]) == (1, 3)
    assert known_units(config, GRAPH, ("train",), None) is None
    with pytest.raises(InputError, match=r"units: 4, 9 → not in this run, which has units 0 to 3"):
        known_units(config, GRAPH, ("segment",), [4, 0, 9])
    with pytest.raises(InputError, match=r"units: \[\]"):
        known_units(config, GRAPH, ("segment",), [])
    with pytest.raises(InputError, match="makes one result"):
        known_units(config, GRAPH, ("train",), [0])


@pytest.mark.parametrize("text", ["", "a", "1,", "-3", "1-", "2-x"])
def test_bad_units(text: str) -> None:
    with pytest.raises(InputError, match="write numbers"):
        parse_units(text)


def test_numbers_shorten_spans() -> None:
    assert numbers([7, 0, 1, 2]) == "0-2, 7"
    assert numbers([]) == ""
