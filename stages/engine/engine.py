"""The engine: runs units and reduce stages, commits results, and decides what is cached. Independent of Prefect."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine import ranks
from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.stages.engine.contract import FatalError, InputError, MapStage, Postponed, Progress, ReduceStage, Stage
from bootpig.stages.engine.loaded import loaded
from bootpig.stages.engine.pieces import clear_pieces
from bootpig.stages.engine.reduce import is_first_process, publish_result
from bootpig.stages.engine.survey import StageSurvey, Surveyor, graph_of
from bootpig.stages.engine.units import WAITS, UnitFailed, UnitReport, UnitWork, first_line, log_record, quietly
from bootpig.storage.errors import NO_SPACE, CorruptPart, StoreUnavailable
from bootpig.storage.folders import check_folder, withdraw_folder
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

_LOG = logging.getLogger(__name__)


def quiet(done: int, total: int, text: str) -> None:
    """A progress callback that displays nothing."""


class Engine:
    """Runs the stages of one configuration against its store.

    Raises:
        StoreError: the root cannot be opened.
    """

    def __init__(self, config: PipelineConfig, stages: Mapping[str, type[Stage]] | None = None) -> None:
        """`stages`: by name, in the order of the graph. Default: those of the registry."""
        self.config = config
        self.root = Root(config.root)
        self.graph = graph_of(config, stages)
        self.run = ""
        """The id of the run that this engine works for, if there is one. A stage may tell it to others."""
        self._surveyor = Surveyor(config, self.root, self.graph)

    def units(self) -> range:
        return self.config.unit_numbers()

    def survey(self, stage: str) -> StageSurvey:
        """The current state of one stage in the store."""
        return self._surveyor.survey([stage])[stage]

    def survey_all(self, stages: Iterable[str] | None = None) -> dict[str, StageSurvey]:
        """The state of `stages` (default: all) and all stages that they depend on, in the order of the graph."""
        return self._surveyor.survey(self.graph.stages if stages is None else stages)

    def make(self, stage: str) -> Stage:
        """Make a stage with its settings. Loads nothing."""
        return self._surveyor.make(stage)

    def run_unit(
        self,
        stage: str,
        unit: int,
        *,
        force: bool = False,
        retry_failed: bool = False,
        progress: Progress = quiet,
    ) -> UnitReport:
        """Make one unit of a map stage, unless it is complete.

        Args:
            force: rebuild it even if it is complete.
            retry_failed: rebuild the slices with failed rows.

        Returns:
            A report. A unit that could not be committed is `failed`, with the reason in one line, and its previous
            version is kept. A unit that cannot be made now is `pending`.

        Raises:
            InputError, ModelError, StoreError: the user's input cannot be used.
        """
        map_stage = self.make(stage)
        assert isinstance(map_stage, MapStage)
        if unit not in self.units():
            raise InputError(f"units: {unit} is not a unit of this run; they are 0 to {len(self.units()) - 1}")
        work = UnitWork(self.config, self._surveyor, map_stage, unit)
        started = time.monotonic()
        try:
            report = work.run(force, retry_failed, progress)
        except Postponed as error:
            return UnitReport(stage, unit, "pending", str(error), time.monotonic() - started)
        except (UnitFailed, StoreUnavailable) as error:
            work.note_failure(str(error), started)
            return UnitReport(stage, unit, "failed", str(error), time.monotonic() - started)
        return report

    def run_reduce(self, stage: str, *, force: bool = False, progress: Progress = quiet) -> UnitReport:
        """Make the result of a reduce stage, unless it is complete.

        In a distributed run, every process calls this, and the first one publishes the result.

        Raises:
            InputError, ModelError, StoreError: the user's input cannot be used.
        """
        surveys = self._surveyor.survey([stage])
        survey = surveys[stage]
        if not survey.fingerprint:
            return UnitReport(stage, 0, "failed", f"{stage}: the stages that it reads are not complete; run them first")
        if survey.result is not None and not force:
            clear_pieces(self.root, survey.path)  # left by a process that was killed after it published
            return UnitReport(stage, 0, "cached")
        if not self.config.train_on_partial and (left := self._left(stage, surveys)):
            return UnitReport(stage, 0, "failed", left)
        reduce_stage = self.make(stage)
        assert isinstance(reduce_stage, ReduceStage)
        parts = Parts(self.root, stage, survey.fingerprint)
        parts.describe(survey.identity)
        started = time.monotonic()
        if force and is_first_process():
            # before other ranks start, which must not find any
            StoredCheckpoints(self.root, survey.path, Path()).clear()
        try:
            with (
                ranks.started(self.config, stage, reduce_stage.processes(), force=force),
                loaded(reduce_stage, self.config, lambda: progress(0, 1, WAITS)) as ready,
            ):
                assert isinstance(ready, ReduceStage)
                above = [surveys[name] for name in self.graph.upstream[stage]]
                publish_result(self.root, ready, survey, above, progress, run=self.run, restart=force)
        except (CorruptPart, StoreUnavailable) as error:
            message = str(error)
        except (FatalError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                message = f"{stage}: no space left on the disk of the work folder; free some and run again"
            else:
                kind = "" if isinstance(error, FatalError) else f"{type(error).__name__}: "
                message = f"{stage}: {kind}{first_line(error).removeprefix(f'{stage}: ')}"
                parts.log(0, log_record("failed", started, message=traceback.format_exc()))
        else:
            if is_first_process():
                parts.log(0, log_record("done", started))
                self.root.remove(f"{parts.folder}/failed-00000.txt")
            return UnitReport(stage, 0, "done", seconds=time.monotonic() - started)
        quietly(parts.note_failure, 0, message)
        return UnitReport(stage, 0, "failed", message, time.monotonic() - started)

    def _left(self, stage: str, surveys: Mapping[str, StageSurvey]) -> str:
        """The missing units that prevent a reduce stage from starting, in one line. Empty if there are none.

        A result made from part of the data would have to be rebuilt from the beginning after the repair.
        """
        for name in self.graph.upstream[stage]:
            units = surveys[name].units
            if left := [unit for unit, state in units.items() if state != "complete"]:
                some = ", ".join(map(str, left[:5])) + (", …" if len(left) > 5 else "")
                return (
                    f"{stage}: not started, {len(left)} of {len(units)} units of {name} are not complete ({some}); "
                    "run again to make them, or set train_on_partial to true"
                )
        return ""

    def verify(self, stage: str, progress: Progress = quiet) -> list[str]:
        """Verify all checksums of a stage. Damaged units become stale. Returns one line per problem."""
        survey = self.survey(stage)
        if survey.result is not None:
            bad = check_folder(self.root, survey.result)
            if bad:
                withdraw_folder(self.root, f"{survey.path}/result", survey.result)
            return [f"{stage}: result/{name} missing or altered" for name in bad]
        parts = Parts(self.root, stage, survey.fingerprint)
        problems = []
        for done, (unit, marker) in enumerate(sorted(survey.markers.items()), 1):
            try:
                parts.payload(unit, marker)
            except CorruptPart as error:
                parts.discard_payload(unit)
                problems.append(str(error))
            progress(done, len(survey.markers), f"unit {unit}")
        problems += [f"{stage} unit {unit}: stale" for unit, state in survey.units.items() if state == "stale"]
        return problems
