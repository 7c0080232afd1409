"""Which stages are checked before a run: those with something to make, and those below them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import missing_models
from bootpig.stages.registry import STAGES
from tests.stages.doubles import Counter, config, doubles

pytestmark = pytest.mark.usefixtures("doubles")

__all__ = ["doubles"]


class Unready(Counter):
    def check_ready(self) -> None:
        raise InputError("train.model: is not ready")


@pytest.mark.parametrize(("captions", "found"), [(20, []), (40, ["train.model: is not ready"])])
def test_a_result_of_fewer_captions_does_not_count_as_made(
    captions: int, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(config(tmp_path))
    for stage in engine.graph.maps():
        for unit in engine.units():
            engine.run_unit(stage, unit)
    engine.run_reduce("train")
    monkeypatch.setitem(STAGES, "train", Unready)
    more = Engine(config(tmp_path, caption__count=captions))
    assert missing_models(more, more.graph.above(["train"]), ready=True)["train"] == found
