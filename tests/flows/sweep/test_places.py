"""Sweeps in other places than a terminal and a disk: two at once on an S3 store with faults, on a Prefect server, and
with rows that failed before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bootpig.flows.cli.main import main
from bootpig.flows.loading import dump_config
from bootpig.flows.runs.records import list_runs
from bootpig.storage.root import Root
from tests.flows.live import Live, tiny
from tests.flows.processes import Command
from tests.servers.llm import KEY, Endpoint, serving
from tests.servers.s3 import Faults, s3_bucket

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]

ONE = {"name": "one", "set": {"evaluate.references": 1}}
THREE = {"name": "three", "set": {"evaluate.references": 3}}
FEWER = {"name": "fewer", "set": {"train.steps": 1, "train.checkpoint_every": 1}}


def write_sweep(folder: Path, name: str, root: str, subjects: Path, *cells: Any, **changes: Any) -> Path:
    base = tiny(Path("store"), **{"evaluate.subjects": subjects, "train.steps": 2, **changes})
    base = base.model_copy(update={"root": root})
    (folder / f"{name}-base.yaml").write_text(dump_config(base))
    file = folder / f"{name}.yaml"
    content = {"name": name, "base": f"{name}-base.yaml", "cells": cells, "seeds": {"train.seed": [0]}}
    file.write_text(yaml.safe_dump(content))
    return file


def environment(folder: Path, name: str, **more: str) -> dict[str, str]:
    return {"PREFECT_HOME": str(folder / f"prefect-{name}"), "OMP_NUM_THREADS": "1", **more}


def made(root: Root) -> Counter[tuple[str, str, int]]:
    """(stage, fingerprint, unit) → in how many runs it was made."""
    return Counter(
        (name, stage.fingerprint, unit)
        for record in list_runs(root)
        for name, stage in record.stages.items()
        for unit in stage.made
    )


@pytest.fixture(scope="module")
def s3() -> Iterator[Faults]:
    with s3_bucket() as faults:
        yield faults


def test_two_sweeps_at_once_on_s3_share_what_they_have_in_common(
    s3: Faults, subjects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://data/sweeps"
    files = [write_sweep(tmp_path, name, url, subjects, ONE, cell) for name, cell in (("a", THREE), ("b", FEWER))]
    s3.rate = 0.03
    both = [
        Command(["sweep", str(file)], tmp_path / f"{file.stem}.log", environment(tmp_path, file.stem)) for file in files
    ]
    codes = [each.wait(900) for each in both]
    s3.rate = 0.0
    assert codes == [0, 0], "\n".join(each.log.read_text() for each in both)
    root = Root(url)
    # a unit that both make at the same moment is made by both, to the same bytes
    assert Counter(stage for stage, _, _ in made(root)) == {
        **dict.fromkeys(("caption", "synthesize", "segment", "score", "augment", "encode"), 2),
        "select": 1,
        "train": 2,
        "evaluate": 3,
    }
    folders = root.folders("sweeps")
    found = [json.loads(root.read(f"sweeps/{folder}/sweep.json"))["runs"] for folder in folders]
    assert len({run["evaluated"] for runs in found for run in runs if run["cell"] == "one"}) == 1
    assert all(
        root.exists(f"sweeps/{folder}/{name}") for folder in folders for name in ("sweep.parquet", "report.html")
    )
    assert main(["sweep", str(files[0]), "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert all(stage["due"] == 0 for run in runs for stage in run["stages"].values())


def test_failed_rows_are_retried_once_for_all_cells(
    subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint()
    endpoint.fault(kind="empty", after=3, times=-1)
    with serving(endpoint) as url:
        llm = {"base_url": url, "model": "writer-1", "api_key_env": "BOOTPIG_LLM_KEY", "captions_per_request": 4}
        llm |= {"rounds": 1, "concurrency": 1}
        written = write_sweep(tmp_path, "retried", str(tmp_path / "store"), subjects, ONE, THREE, max_failed=1.0)
        base = yaml.safe_load((tmp_path / "retried-base.yaml").read_text())
        base["caption"] = {"source": "openai", "count": 16, "openai": llm}
        (tmp_path / "retried-base.yaml").write_text(yaml.safe_dump(base))

        def run(name: str, *options: str) -> tuple[list[dict[str, Any]], int]:
            """The record of the sweep, and how often the endpoint was asked."""
            before = len(endpoint.log)
            log = tmp_path / f"{name}.log"
            each = Command(["sweep", str(written), *options], log, environment(tmp_path, "one", BOOTPIG_LLM_KEY=KEY))
            assert each.wait(600) == 0, log.read_text()
            root = Root(str(tmp_path / "store"))
            (folder,) = root.folders("sweeps")
            return json.loads(root.read(f"sweeps/{folder}/sweep.json"))["runs"], len(endpoint.log) - before

        first, asked = run("first")
        assert [each["state"] for each in first] == ["done", "done"] and asked >= 4
        endpoint.faults.clear()
        cached, asked = run("again")
        assert [each["state"] for each in cached] == ["cached", "cached"] and asked == 0
        retried, asked = run("retry", "--retry-failed")
        assert [each["state"] for each in retried] == ["done", "done"] and asked == 1, "by the first cell alone"
        last, asked = run("last", "--retry-failed")
        assert [each["state"] for each in last] == ["cached", "cached"] and asked == 0
        assert [each["evaluated"] for each in last] == [each["evaluated"] for each in retried]
        assert not {each["evaluated"] for each in last} & {each["evaluated"] for each in first}, "of more samples"


def test_a_sweep_is_triggered_on_a_server(live: Live, subjects: Path, tmp_path: Path) -> None:
    file = write_sweep(tmp_path, "served", str(tmp_path / "store"), subjects, ONE, THREE)
    content = {**yaml.safe_load(file.read_text()), "base": str(tmp_path / "served-base.yaml")}
    flow_run = live.trigger("sweep", sweep=content)
    state = live.wait(flow_run, seconds=600)
    assert state["type"] == "COMPLETED", state["message"] + live.tail()
    assert live.flow_run(flow_run)["name"] == "sweep served"
    found = live.artifacts(flow_run)
    assert {"served-sweep-scores", "served-sweep-contact-sheet"} <= found.keys()
    rows = json.loads(found["served-sweep-scores"]["data"])
    assert {"one", "three"} <= {value for row in rows for value in row.values()}
    again = live.trigger("sweep", sweep=content)
    assert live.wait(again, seconds=300)["type"] == "COMPLETED"
    assert all(count == 1 for count in made(Root(str(tmp_path / "store"))).values())
