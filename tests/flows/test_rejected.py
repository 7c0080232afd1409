"""A run of which a stage rejects everything stops, says why, loses nothing, and says the same when it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.runs.records import list_runs
from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root
from tests.stages.doubles import CALLS, Cutter, config, doubles, image_bytes

pytestmark = [pytest.mark.usefixtures("prefect_api", "doubles"), pytest.mark.slow]

__all__ = ["doubles"]


def reject(self: Cutter, sample: Sample) -> Sample:
    return sample.rejected("blank")


def test_a_stage_that_rejects_everything_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bootpig.flows.pipeline import bootstrap, run_stage

    settings = config(tmp_path, caption__count=60, workers=2)  # twelve units of five
    good = Cutter.make
    monkeypatch.setattr(Cutter, "make", reject)
    state = bootstrap(settings, until="encode", return_state=True)
    assert state.is_failed()
    line = (
        "segment: stopped because 20 of its first 20 rows were rejected (20 blank: nothing to see); fix the cause, or "
        "set max_rejected to 1 to go on"
    )
    assert state.message == line
    (record,) = list_runs(Root(settings.root))
    assert (record.state, record.message) == ("failed", line)
    made = record.stages["segment"].made
    assert made[:4] == [0, 1, 2, 3]
    assert len(made) <= 5, "only units that ran meanwhile"
    assert "augment" not in record.stages
    kept = image_bytes(tmp_path)

    CALLS.clear()
    again = bootstrap(settings, until="encode", run=record.id, return_state=True)
    assert again.is_failed()
    assert again.message == line
    assert CALLS == []
    assert image_bytes(tmp_path) == kept

    # a repair that is forced judges what it makes, and a raised limit goes on with what is there
    monkeypatch.setattr(Cutter, "make", good)
    assert run_stage("segment", settings, units=[0, 1], force=True, return_state=True).is_completed()
    monkeypatch.setattr(Cutter, "make", reject)
    assert run_stage("segment", settings, units=[5], return_state=True).is_completed(), "the first units are good"
    fingerprint = Engine(settings).survey("segment").fingerprint
    loose = settings.model_copy(update={"max_rejected": 1.0})
    assert Engine(loose).survey("segment").fingerprint == fingerprint
    assert bootstrap(loose, until="encode", return_state=True).is_completed()
