"""A finished data set and its exports, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.runs.records import RunRecord, promote
from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.export.formats import FORMATS
from tests.stages.doubles import STAGES, Cutter, Encoder, Painter
from tests.stages.export.data import data_set, exported, finished


class Choosy(Encoder):
    """Rejects some samples, so that the data set is smaller than what was cut out."""

    def make(self, sample: Sample) -> Sample:
        return sample.rejected("blank") if int(sample.id, 16) % 5 == 0 else super().make(sample)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, RunRecord]:
    with pytest.MonkeyPatch.context() as patch:
        for double in (Painter, Cutter, Choosy):
            patch.setitem(STAGES, double.name, double)
        engine, record = finished(tmp_path_factory.mktemp("data") / "store")
        release()
    promote(engine.root, record)
    return engine, record


@pytest.fixture(scope="session")
def whole(made: tuple[Engine, RunRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted export in each format."""
    folder = tmp_path_factory.mktemp("whole")
    for name in FORMATS:
        assert exported(data_set(*made), folder / name, name).done
    return folder
