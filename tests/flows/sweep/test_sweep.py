"""`bootpig sweep` on the toy pipeline: killed and continued, a cell that fails, and the numbers of its tables."""

from __future__ import annotations

import io
import json
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from bootpig.flows.cli.main import main
from bootpig.flows.loading import dump_config
from bootpig.flows.runs.records import latest_run, list_runs
from bootpig.flows.sweep.file import load_sweep
from bootpig.flows.sweep.prepared import prepare_sweep
from bootpig.flows.sweep.results import write_results
from bootpig.stages.engine.contract import InputError
from bootpig.storage.root import Root
from science.results import read_results
from tests.flows.live import tiny
from tests.flows.processes import Command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]

SEEDS = ("train.seed=0", "train.seed=1")


class Swept:
    """A sweep that was killed after its first run, and then continued."""

    def __init__(self, folder: Path, subjects: Path) -> None:
        base = tiny(folder / "store", **{"evaluate.subjects": subjects, "train.steps": 2})
        (folder / "base.yaml").write_text(dump_config(base))
        self.folder, self.file, self.root = folder, folder / "sweep.yaml", Root(str(folder / "store"))
        self.environment = {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}
        self.write(
            cells=[
                {"name": "one", "set": {"evaluate.references": 1}},
                {"name": "drei Bilder", "set": {"evaluate.references": 3}},
                {"name": "nothing found", "set": {"segment.min_score": 1.0}},
            ]
        )

    def write(self, **changes: Any) -> None:
        content = {"name": "refs", "base": "base.yaml", "baseline": "one", "seeds": {"train.seed": [0, 1]}}
        self.file.write_text(yaml.safe_dump({**content, **changes}, allow_unicode=True))

    def start(self, name: str) -> Command:
        return Command(["sweep", str(self.file)], self.folder / name, self.environment)

    def records(self) -> list[dict[str, Any]]:
        """The runs in the record of the sweep, empty before there is one."""
        found = self.root.read_many([f"sweeps/{folder}/sweep.json" for folder in self.root.folders("sweeps")])
        return [run for data in found.values() for run in json.loads(data)["runs"]]  # the folder is there before it

    def read(self, name: str) -> bytes:
        (folder,) = self.root.folders("sweeps")
        return self.root.read(f"sweeps/{folder}/{name}")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, subjects: Path) -> Swept:
    swept = Swept(tmp_path_factory.mktemp("sweep"), subjects)
    first = swept.start("first.log")
    first.wait_for(lambda: any(run["state"] == "done" for run in swept.records()), 600)
    first.process.send_signal(signal.SIGKILL)
    first.wait(60)
    assert first.left() == []
    second = swept.start("second.log")
    assert second.wait(600) == 1, second.log.read_text()
    return swept


def test_what_was_done_before_the_kill_is_cached(swept: Swept) -> None:
    runs = swept.records()
    assert [(run["cell"], run["seed"], run["state"]) for run in runs] == [
        ("one", SEEDS[0], "cached"),
        ("drei Bilder", SEEDS[0], "done"),
        ("nothing found", SEEDS[0], "failed"),
        ("one", SEEDS[1], "done"),
        ("drei Bilder", SEEDS[1], "done"),
        ("nothing found", SEEDS[1], "failed"),
    ]
    records = {record.id: record for record in list_runs(swept.root)}
    assert {run["run"] for run in runs} <= records.keys()
    with pytest.raises(InputError):  # the runs of a sweep are no versions of the data set
        latest_run(swept.root)
    # the cells share the data set, and those of a seed the model; evaluate alone was made for each of them
    shared = records[runs[1]["run"]].stages
    assert all(shared[stage].made == [] for stage in ("caption", "synthesize", "segment", "augment", "encode", "train"))
    assert shared["evaluate"].made == [0]
    assert len({run["evaluated"] for run in runs if run["evaluated"]}) == 4


def test_a_failed_cell_is_named_and_is_a_row(swept: Swept) -> None:
    said = (swept.folder / "second.log").read_text()
    assert "2/6 runs failed: nothing found, train.seed=0; nothing found, train.seed=1" in said
    rows = pq.read_table(io.BytesIO(swept.read("sweep.parquet"))).to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["cell"], row["seed"], row["value"]) for row in failed] == [
        ("nothing found", seed, None) for seed in SEEDS
    ]
    assert all("segment" in row["reason"] for row in failed)
    assert "Failed runs" in swept.read("report.html").decode()


def test_the_table_is_what_evaluate_measured(swept: Swept) -> None:
    """Every mean and difference again, from the pictures' scores."""
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in swept.records():
        if run["evaluated"]:
            (file,) = Path(swept.root.path).glob(f"evaluate/{run['evaluated']}/result/*/scores.parquet")
            pictures = [row for row in pq.read_table(file).to_pylist() if row["method"] == "bootpig"]
            for subject in sorted({row["subject"] for row in pictures}):
                values = [row["dino"] for row in pictures if row["subject"] == subject]
                means[run["cell"], run["seed"]].append(float(np.mean(values)))
    facts = {cell["cell"]: cell for cell in json.loads(swept.read("results.json"))["cells"]}
    for cell in ("one", "drei Bilder"):
        wanted = np.mean([means[cell, seed] for seed in SEEDS])
        found = facts[cell]["methods"]["bootpig"]["dino"]
        assert found["mean"] == pytest.approx(wanted, abs=1e-6)
        assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]
        assert (found["seeds"], found["subjects"]) == (2, 2)
    gain = np.mean([np.subtract(means["drei Bilder", seed], means["one", seed]) for seed in SEEDS])
    difference = facts["drei Bilder"]["methods"]["bootpig"]["dino"]["difference"]
    assert difference["mean"] == pytest.approx(gain, abs=1e-6)
    assert facts["nothing found"]["methods"] == {} and len(facts["nothing found"]["failed"]) == 2


def test_a_dry_run_counts_what_is_shared_once(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.folder.rglob("*") if path.is_file()}
    assert main(["sweep", str(swept.file), "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    due = [{name: stage["due"] for name, stage in run["stages"].items() if stage["due"]} for run in runs]
    done, lost = {}, {"score": 2, "select": 1, "augment": 2, "encode": 2, "train": 1, "evaluate": 1}
    assert due == [done, done, lost, done, done, {"train": 1, "evaluate": 1}]
    assert runs[0]["stages"]["caption"] == {"total": 2, "cached": 2, "due": 0, "shared": 0}
    assert runs[5]["stages"]["encode"] == {"total": 2, "cached": 0, "due": 0, "shared": 2}
    assert runs[0]["gpu_hours"] == 0 < runs[2]["gpu_hours"]
    assert {path: path.stat().st_mtime_ns for path in swept.folder.rglob("*") if path.is_file()} == before


def test_more_data_is_not_complete_with_the_results_of_less(swept: Swept) -> None:
    """A training has a result for the units that exist. It is not that of a run with further ones."""
    more = {"caption.count": 24, "evaluate.references": 1}
    swept.write(cells=[{"name": "one", "set": {"evaluate.references": 1}}, {"name": "more", "set": more}])
    ready = prepare_sweep(load_sweep(swept.file))
    assert [(run.of.cell.name, run.complete is not None) for run in ready.runs] == [("one", True), ("more", False)] * 2
    assert read_results([swept.file]).missing() == {"refs": [f"more, {seed}" for seed in SEEDS]}


def test_an_edited_file_reuses_what_did_not_change(swept: Swept) -> None:
    """Names, measures and baseline change no run. The new table has no cell that is gone, and nothing is drawn."""
    cells = [{"name": "1", "set": {"evaluate.references": 1}}, {"name": "2", "set": {"evaluate.references": 2}}]
    swept.write(cells=cells, seeds={"train.seed": [1]}, baseline=None, report=["clip_t"])
    ready = prepare_sweep(load_sweep(swept.file))
    before = {run["seed"]: run["run"] for run in swept.records() if run["cell"] == "one"}
    assert [run.complete.id if run.complete else None for run in ready.runs] == [before[SEEDS[1]], None]
    page = write_results(ready)
    assert [(cell.name, len(cell.scores) > 0, cell.failed) for cell in page.cells] == [
        ("1", True, {}),
        ("2", False, {SEEDS[1]: "it did not end"}),
    ]
    assert ready.record.folder.removeprefix("sweeps/") in swept.root.folders("sweeps")
    assert len(swept.root.folders("sweeps")) == 2
    swept.root.remove(ready.record.folder, recursive=True)
