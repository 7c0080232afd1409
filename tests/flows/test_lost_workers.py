"""A stage whose worker processes die goes on, and blames no unit that was only on its way beside them."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Self

import pytest
from prefect.states import Completed

from bootpig.flows import stage_run
from bootpig.flows.runners import Workers
from bootpig.flows.stage_run import GONE, IDLE_RESTARTS, StageOutcome, StageRun
from bootpig.stages.engine.engine import Engine
from tests.stages import doubles

UNITS = range(12)


class Pool:
    """Stands for the pool of processes: a unit in `deadly` ends it, with all that are on their way then."""

    def __init__(self, deadly: dict[int, int]) -> None:
        self.deadly = deadly
        """Unit → how often it kills the process that makes it."""
        self.broken = False
        self.state = Completed()

    def with_options(self, **options: Any) -> Self:
        self.broken = False
        return self

    def submit(self, config: str, stage: str, unit: int, *options: Any) -> Any:
        pool = self

        class Future:
            state = pool.state

            def wait(self) -> None:
                if not pool.broken and pool.deadly.get(unit):
                    pool.deadly[unit] -= 1
                    pool.broken = True
                if pool.broken:
                    raise BrokenProcessPool

        return Future()


@pytest.fixture
def run(prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(deadly: dict[int, int]) -> StageOutcome:
        monkeypatch.setattr(stage_run, "make_unit_elsewhere", Pool(deadly))
        engine = Engine(doubles.config(tmp_path, caption__count=60, runner="processes", workers=2))
        return StageRun(engine, "caption", engine.survey("caption"), list(UNITS), Workers(engine.config)).run()

    return run


@pytest.mark.parametrize(
    ("deadly", "failed", "restarts"),
    [
        ({}, [], 0),
        ({5: 1}, [], 1),  # memory ran out once
        ({5: 1, 11: 1}, [], 2),
        ({0: 9}, [0, 1], 2),  # a unit that is too large: nobody knows which of the two
        ({11: 9}, [11], 2),
        (dict.fromkeys(UNITS, 9), list(UNITS), IDLE_RESTARTS),  # a machine that is too small
    ],
)
def test_units_that_were_lost_run_once_more(run: Any, deadly: dict[int, int], failed: list[int], restarts: int) -> None:
    outcome = run(deadly)
    assert outcome.failed == dict.fromkeys(failed, GONE)
    assert sorted([*outcome.made, *outcome.failed]) == list(UNITS) and len(outcome.made) == len(UNITS) - len(failed)
    assert outcome.restarts == restarts
