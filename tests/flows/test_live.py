"""Against a real server with a worker: triggered runs, artifacts, retries, the schedule, cancelled and killed runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from bootpig.flows.loading import load_config
from bootpig.flows.runs.records import latest_run, list_runs, read_config
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.root import Root
from tests.flows.live import PROJECT, Live, as_parameters, tiny
from tests.servers.llm import KEY, Endpoint, serving

pytestmark = pytest.mark.slow

GRAPH = graph_of(load_config("toy"))
CHAIN, MAPS = list(GRAPH.stages), GRAPH.maps()


def until(happens: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def done(live: Live, tmp_path_factory: pytest.TempPathFactory, subjects: Path) -> tuple[str, Path]:
    """A finished `bootstrap` run, triggered by `prefect deployment run`: (flow run, store)."""
    store = tmp_path_factory.mktemp("store")
    flow_run = live.run_by_command("bootstrap", config=as_parameters(tiny(store, **{"evaluate.subjects": subjects})))
    state = live.wait(flow_run)
    assert state["type"] == "COMPLETED", state["message"] + live.tail()
    return flow_run, store


def test_the_deployments_and_their_forms(live: Live) -> None:
    for name in ("bootstrap", "run_stage", "regenerate"):
        schema = live.deployment(name)["parameter_openapi_schema"]
        assert "PipelineConfig" in schema["definitions"]
        assert schema["properties"]["config"]["default"]["name"] == "toy"
    sweep = live.deployment("sweep")["parameter_openapi_schema"]
    assert sweep["properties"]["sweep"]["default"]["base"] == "toy" and "SweepFile" in sweep["definitions"]
    regenerate = live.deployment("regenerate")
    assert regenerate["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert regenerate["global_concurrency_limit"]["limit"] == 1
    (schedule,) = regenerate["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "Etc/UTC")
    assert schedule["active"]


def test_what_is_paused_stays_paused_through_a_deploy(live: Live) -> None:
    (schedule,) = live.deployment("regenerate")["schedules"]
    live.prefect("deployment", "schedule", "pause", "regenerate/regenerate", schedule["id"])
    silent = live.api("POST", "automations/filter", {})[0]
    live.prefect("automation", "pause", "--id", silent["id"])
    live.deploy()
    assert [entry["active"] for entry in live.deployment("regenerate")["schedules"]] == [False]
    automations = live.api("POST", "automations/filter", {})
    assert [(entry["name"], entry["enabled"]) for entry in automations] == [(silent["name"], False)]
    live.prefect("automation", "resume", "--id", silent["id"])


def test_a_triggered_run_shows_its_stages_and_artifacts(live: Live, done: tuple[str, Path]) -> None:
    flow_run, store = done
    stages = live.subflows(flow_run)
    assert set(stages) == set(CHAIN)
    assert {run["state_name"] for run in stages.values()} == {"Completed"}
    assert live.tasks(stages["segment"]["id"], 2) == {"unit 0": "Completed", "unit 1": "Completed"}
    record = list_runs(Root(str(store)))[0]
    artifacts = live.artifacts(flow_run)
    assert set(artifacts) == {"toy-yields", "toy-metrics", "toy-contact-sheet", "toy-report"}
    yields = json.loads(artifacts["toy-yields"]["data"])
    assert [line["stage"] for line in yields] == CHAIN
    rows = {line["stage"]: line["rows ok"] for line in yields}
    assert all(rows[name] == record.stages[name].rows["ok"] for name in MAPS)
    metrics = json.loads(artifacts["toy-metrics"]["data"])
    assert "text only" in [line["method"] for line in metrics]
    assert all(-1 <= float(line["DINO ↑"].split()[0]) <= 1 for line in metrics if line["DINO ↑"])
    assert "data:image/jpeg;base64," in artifacts["toy-contact-sheet"]["data"]
    assert (store / record.folder / "report.html").as_uri() in artifacts["toy-report"]["data"]
    (progress,) = live.artifacts(stages["train"]["id"]).values()
    assert (progress["type"], float(progress["data"])) == ("progress", 100.0)


def test_a_retry_makes_what_failed_and_no_forced_unit_again(live: Live, done: tuple[str, Path]) -> None:
    store = shutil.copytree(done[1], done[1].parent / "to-fail")
    config = as_parameters(tiny(store))
    (marker,) = store.glob("caption/*/part-00001.parquet")
    marker.rename(store / "away")
    flow_run = live.trigger("run_stage", stage="synthesize", config=config, units=[0, 1], force=True)
    state = live.wait(flow_run)
    assert (state["type"], state["message"]) == ("FAILED", "synthesize: 1/2 units failed: 1")
    until(lambda: any("unit 1" in line for line in live.logs(flow_run)))  # why stands in the run's own log
    (store / "away").rename(marker)
    live.prefect("flow-run", "retry", flow_run)
    assert live.wait(flow_run, lambda kind: kind == "COMPLETED")
    record = next(record for record in list_runs(Root(str(store))) if record.flow_run == flow_run)
    assert (record.stages["synthesize"].made, record.stages["synthesize"].cached) == ([1], 1)
    assert record.forced is not None and record.forced.units == {"synthesize": [0, 1]}
    newest = live.subflows(flow_run)["synthesize"]["id"]
    assert live.tasks(newest, 2) == {"unit 0": "Cached", "unit 1": "Completed"}


MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
Webhook(name="told", url=sys.argv[1], json_data={"text": "{{subject}} {{body}}"}).save("oncall", overwrite=True)
"""


def test_a_failed_run_sends_a_notification(live: Live, tmp_path: Path) -> None:
    told: list[str] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as ear:
        threading.Thread(target=ear.serve_forever, daemon=True).start()
        live.python("-c", MAKE_BLOCK, f"http://127.0.0.1:{ear.server_port}/hook")
        live.python("-m", "bootpig", "setup-server", "--notify", "custom-webhook/oncall")
        live.wait(live.trigger("run_stage", stage="segmint", config=as_parameters(tiny(tmp_path / "store"))))
        until(lambda: bool(told))
        ear.shutdown()
    assert "run_stage segmint: Failed" in told[0]
    assert "there is no such stage" in told[0]
    (automation,) = [entry for entry in live.api("POST", "automations/filter", {}) if "failed" in entry["name"]]
    live.api("DELETE", f"automations/{automation['id']}")


def test_the_schedule_makes_versions(live: Live, tmp_path: Path) -> None:
    root = Root(str(tmp_path / "store"))
    parameters = {"train": False, "keep": 1, "config": as_parameters(tiny(tmp_path / "store", **{"caption.count": 8}))}
    due = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    first = live.schedule("regenerate", due.isoformat(), **parameters)
    until(lambda: live.flow_run(first)["state"]["type"] in ("PENDING", "RUNNING"))
    second = live.schedule("regenerate", datetime.now(UTC).isoformat(), **parameters)
    assert live.wait(second)["type"] == "CANCELLED"  # one at a time: the newer one is not made
    assert live.wait(first)["type"] == "COMPLETED"
    (record,) = list_runs(root)
    assert (record.scheduled, record.id, list(record.stages)[-1]) == (due, latest_run(root), "encode")
    seed = read_config(root, record).seed
    assert seed != 0

    live.prefect("flow-run", "retry", first)  # the same version, not another one
    until(lambda: live.flow_run(first)["run_count"] == 2)
    assert live.wait(first)["type"] == "COMPLETED"
    (again,) = list_runs(root)
    assert (again.id, again.stages["encode"].cached, read_config(root, again).seed) == (record.id, 1, seed)

    late = live.schedule("regenerate", (due - timedelta(hours=20)).isoformat(), **parameters)
    assert live.wait(late)["name"] == "Skipped"
    assert len(list_runs(root)) == 1

    # of the nights that nobody was there for, the last is made up for, whichever of the runs gets to make it
    missed = [live.schedule("regenerate", (due - timedelta(hours=h)).isoformat(), **parameters) for h in (44, 20, -1)]
    assert {live.wait(night)["type"] for night in missed} == {"COMPLETED", "CANCELLED"}
    (record,) = list_runs(root)  # keep=1
    assert record.scheduled == due + timedelta(hours=1)

    # the gate: with the toy's own thresholds two steps paint too little that can be cut out
    thin = {"caption.count": 8, "segment.min_score": 0.9, "min_yield": 1.0}
    gated = live.trigger("regenerate", train=False, config=as_parameters(tiny(tmp_path / "store", **thin)))
    state = live.wait(gated)
    assert state["type"] == "FAILED"
    gates = ("min_yield is 100.0%", "no unit to work on", "there is no scored sample")
    assert any(gate in state["message"] for gate in gates)
    assert latest_run(root) == record.id

    newer = live.trigger("regenerate", **parameters)
    assert live.wait(newer)["type"] == "COMPLETED"
    assert latest_run(root) != record.id
    # keep=1: the old version is gone, and so is what failed before the new one
    assert [entry.id for entry in list_runs(root)] == [latest_run(root)]
    assert root.folders("encode") == [list_runs(root)[0].stages["encode"].fingerprint]


MAKE_SECRET = """
import os
from prefect.blocks.system import Secret
Secret(value=os.environ["BOOTPIG_LLM_KEY"]).save("llm-key")
"""


def test_the_key_of_an_endpoint_is_found_nowhere(live: Live, tmp_path: Path) -> None:
    endpoint = Endpoint()
    with serving(endpoint) as url:
        llm = {"base_url": url, "model": "writer-1", "api_key_env": "BOOTPIG_LLM_KEY", "max_retries": 1}
        config = as_parameters(tiny(tmp_path / "store"))
        config["caption"] = {"source": "openai", "count": 16, "openai": llm}
        (tmp_path / "llm.yaml").write_text(json.dumps(config))
        endpoint.fault(kind="echo_key", times=-1)  # the endpoint itself repeats it
        run = [sys.executable, "-m", "bootpig", "run", str(tmp_path / "llm.yaml"), "--until", "caption"]
        failed = subprocess.run(run, cwd=PROJECT, env=live.environment, capture_output=True, text=True)
        assert failed.returncode == 1, failed.stderr
        endpoint.faults.clear()
        live.python("-c", MAKE_SECRET)
        llm |= {"api_key_env": "BOOTPIG_ABSENT_KEY", "api_key_secret": "llm-key"}
        flow_run = live.trigger("bootstrap", config=config, until="caption")
        assert live.wait(flow_run)["type"] == "COMPLETED"
        live.tasks(live.subflows(flow_run)["caption"]["id"], 2)
    assert KEY not in failed.stdout + failed.stderr
    files = [path for folder in (live.home, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "prefect.db" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


SHORTER = "import bootpig.flows.automations as a; from datetime import timedelta; a.set_up(None, timedelta(seconds=40))"
"""The least that outlasts a heartbeat, which Prefect sends every 30 s at most."""

LONG = {"train.steps": 100000, "train.log_every": 1, "train.global_batch_size": 1}


CHECKPOINTS = "train/*/checkpoint-*/manifest.json"


def checkpoint(store: Path) -> bool:
    return any(store.glob(CHECKPOINTS))


def test_a_cancelled_training_keeps_its_checkpoint(live: Live, done: tuple[str, Path]) -> None:
    store = shutil.copytree(done[1], done[1].parent / "to-cancel")
    shutil.rmtree(store / "train")
    two = LONG | {"train.global_batch_size": 2, "train.num_processes": 2}
    flow_run = live.trigger("run_stage", stage="train", config=as_parameters(tiny(store, **two)))
    until(lambda: checkpoint(store), 240)
    processes = live.processes(flow_run)
    assert sum("bootpig.stages.engine.rank" in process.cmdline() for process in processes) == 1
    live.api("POST", f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert live.wait(flow_run)["type"] == "CANCELLED"
    psutil.wait_procs(processes, timeout=10)
    assert live.processes(flow_run) == []
    assert checkpoint(store)
    record = next(record for record in list_runs(Root(str(store))) if record.flow_run == flow_run)
    assert record.state == "interrupted"


def test_a_cancelled_stage_ends_its_worker_processes(live: Live, tmp_path: Path) -> None:
    many = {"caption.count": 160, "synthesize.steps": 50, "runner": "processes", "workers": 2}
    flow_run = live.trigger("bootstrap", config=as_parameters(tiny(tmp_path, **many)), until="synthesize")
    until(lambda: any(tmp_path.glob("synthesize/*/part-*.parquet")), 240)
    processes = live.processes(flow_run)
    assert sum("spawn_main" in " ".join(process.cmdline()) for process in processes) == 2
    live.api("POST", f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert live.wait(flow_run)["type"] == "CANCELLED"
    psutil.wait_procs(processes, timeout=20)
    assert live.processes(flow_run) == []
    (record,) = list_runs(Root(str(tmp_path)))
    assert record.state == "interrupted"


def test_a_killed_worker_leaves_a_crashed_run_that_can_be_retried(live: Live, done: tuple[str, Path]) -> None:
    store = shutil.copytree(done[1], done[1].parent / "to-kill")
    shutil.rmtree(store / "train")
    live.python("-c", SHORTER)
    live.prefect("gcl", "create", "tag:bootpig-gpu", "--limit", "1")
    config = as_parameters(tiny(store, **{"train.steps": 60, "train.global_batch_size": 1}))
    flow_run = live.trigger("run_stage", stage="train", config=config)
    until(lambda: checkpoint(store))
    processes = live.processes(flow_run)
    assert live.api("GET", "v2/concurrency_limits/tag:bootpig-gpu")["active_slots"] == 1
    # all at once, as when the host is lost: nobody is left to say how it ended
    for process in (live.worker, *processes):
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
    assert live.flow_run(flow_run)["state"]["type"] == "RUNNING"
    state = live.wait(flow_run)
    assert (state["type"], state["message"].split(":")[0]) == ("CRASHED", "No heartbeat for 40 s")
    live.python("-m", "bootpig", "setup-server")
    live.start_worker()
    live.prefect("flow-run", "retry", flow_run)  # it waits for the dead one's lease
    assert live.wait(flow_run, lambda kind: kind in ("COMPLETED", "FAILED"))["type"] == "COMPLETED"
    live.api("DELETE", "v2/concurrency_limits/tag:bootpig-gpu")
    log = next(store.glob("train/*/result/*/log.jsonl")).read_text().splitlines()
    assert json.loads(log[-1])["step"] == 60


def test_a_run_ends_with_its_worker(live: Live, done: tuple[str, Path]) -> None:
    store = shutil.copytree(done[1], done[1].parent / "to-orphan")
    shutil.rmtree(store / "train")
    flow_run = live.trigger("run_stage", stage="train", config=as_parameters(tiny(store, **LONG)))
    until(lambda: checkpoint(store))
    processes = live.processes(flow_run)
    live.worker.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=60)
    assert live.processes(flow_run) == []
    assert live.wait(flow_run)["type"] == "CRASHED"
    live.start_worker()


def test_sigterm_writes_a_checkpoint_and_exits_143(live: Live, done: tuple[str, Path], tmp_path: Path) -> None:
    store = shutil.copytree(done[1], done[1].parent / "to-end")
    shutil.rmtree(store / "train")
    config = tiny(store, **LONG, **{"train.checkpoint_every": 20})
    (tmp_path / "long.yaml").write_text(json.dumps(as_parameters(config)))
    command = [sys.executable, "-m", "bootpig", "run", str(tmp_path / "long.yaml"), "--only", "train"]
    run = subprocess.Popen(command, cwd=PROJECT, env=live.environment, stdout=subprocess.DEVNULL)
    until(lambda: checkpoint(store))
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
    steps = [int(path.parent.name.removeprefix("checkpoint-")) for path in store.glob(CHECKPOINTS)]
    assert max(steps) > 20  # one of its own, at the step that was under way
