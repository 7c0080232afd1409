"""`bootpig study`: served as users start it, killed, continued, full; its results; bad input."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bootpig.flows.cli.main import main
from bootpig.flows.runs.records import StageRecord, new_run
from bootpig.stages.config import PipelineConfig
from bootpig.stages.study.study import read_study
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root
from tests.stages.study.evaluated import write_evaluation
from tests.stages.study.serving import Browser


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two evaluations, `a` and `b`."""
    write_evaluation(tmp_path / "a")
    write_evaluation(tmp_path / "b", red=200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def served(*arguments: str, limit: int | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`bootpig study`, and the judges' link that it prints.

    Args:
        limit: maximum size of a file that it can write, in bytes.
    """
    command = [sys.executable, "-m", "bootpig", "study", *arguments]
    limited = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def opened(link: str, judge: Browser | None = None) -> Browser:
    """A browser that has opened the link, with the cookies that `judge` kept."""
    study = read_study(Path("study"))
    assert study is not None
    url, _, key = link.partition("/join/")
    assert key == study.key
    browser = Browser(url, study)
    for name, value in () if judge is None else judge.client.cookies.items():
        browser.client.cookies.set(name, value)
    return browser


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused."""
    assert main(["study", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_killed_server_goes_on_and_results_follow(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served("a", "b", "--pairs", "4") as (process, link):
        ada = opened(link).join("Ada")
        ada.vote(ada.pair(0), 1, 2)
        assert refused(capsys).startswith("--out: 'study' → this study is being served already")
        process.send_signal(signal.SIGKILL)
    with served() as (process, link):
        again = opened(link, ada)
        assert again.done == 1
        again.vote(again.pair(1), 0, 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        assert "votes: study/votes.parquet" in process.stderr.read()
    assert len(pq.read_table("study/votes.parquet")) == 2
    assert main(["study", "--results", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert (results["judges"], results["votes"], results["pairs"]) == (1, 2, 4)
    assert results["results"][0]["cannot_say"] == 1
    assert main(["study", "a", "b", "--pairs", "4", "--results"]) == 0
    assert "cannot say" in capsys.readouterr().out
    assert "holds another study, of a, b with 4 pairs" in refused(capsys, "a", "b", "--pairs", "5")


def test_a_disk_that_is_full_at_a_vote(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served("a", "b", "--pairs", "2") as (_, link):
        ada = opened(link).join("Ada")
    size = Path("study", "votes.jsonl").stat().st_size
    largest = max(path.stat().st_size for path in Path("study").iterdir())
    with served(limit=largest + 999) as (process, link):
        # the first bytes of the vote still fit
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 20, -1))
        judge = opened(link, ada)
        answer = judge.vote(judge.pair(0), 1, 1)
        assert answer.status_code == 507
        assert "could not be saved" in answer.json()["error"]
        assert judge.done == 0
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        assert judge.vote(judge.pair(0), 1, 1).status_code == 200
    assert main(["study", "--results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["votes"] == 1


def test_it_needs_no_torch(runs: Path) -> None:
    code = "import sys; from bootpig.flows.cli.main import main; from bootpig.stages.study import server; "
    code += "from bootpig.flows.cli.study import _made; from bootpig.stages.study.study import read_study; "
    code += "from argparse import Namespace; from pathlib import Path; "
    code += "_made(Namespace(runs=['a', 'b'], root='data', method=[], pairs=None, seed=0), Path('study'), None); "
    code += "assert main(['study', '--results']) == 0; sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_runs_of_a_store(runs: Path, config: PipelineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    root = Root(config.root)
    records = []
    for name, fingerprint in (("a", "1" * 16), ("b", "2" * 16)):
        record = new_run(root, config)
        record.stages["evaluate"] = StageRecord(fingerprint=fingerprint)
        record.save(root)
        publish_folder(root, f"evaluate/{fingerprint}/result", runs / name)
        records.append(record)
    at = ["--root", config.root, "-o", "stored"]
    with served(*(record.id for record in records), *at) as (_, link):
        assert "/join/" in link
    study = read_study(Path("stored"))
    assert study is not None
    assert study.names == (records[0].id, records[1].id)
    folder = str(Path(config.root) / "evaluate" / ("2" * 16))
    assert "holds another study" in refused(capsys, records[0].id, folder, *at, "--pairs", "3")
    empty = new_run(root, config)
    assert "that run has no evaluation" in refused(capsys, empty.id, records[0].id, *at)
    assert "there is no such run" in refused(capsys, "nothing", records[0].id, *at)
    (picture,) = Path(config.root).glob(f"evaluate/{'2' * 16}/result/*/images/bootpig/mug-00-00.png")
    picture.write_bytes(b"altered")
    assert "mug-00-00.png missing or altered" in refused(
        capsys, records[0].id, records[1].id, "--root", config.root, "-o", "new"
    )


def test_bad_input_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(runs / "c", prompts=("a cat",), red=5)
    (runs / "empty").mkdir()
    (runs / "other").mkdir()
    (runs / "other" / "file.txt").write_text("x")
    cases: list[tuple[Sequence[str], str]] = [
        ((), "RUN: missing → 'study' holds no study yet"),
        (("empty",), "holds no scores.parquet"),
        (("a", "a"), "is given twice"),
        (("a", "c"), "have no pair of pictures"),
        (("a", "--method", "bootpig"), "add another --method"),
        (("a", "--method", "bootpig", "--method", "bootpig"), "is given twice"),
        (("a", "b", "--pairs", "0"), "--pairs: 0"),
        (("a", "b", "--pairs", "99"), "there are only 8 pairs"),
        (("a", "b", "--seed", "-1"), "--seed: -1"),
        (("a", "b", "--port", "70000"), "--port: 70000"),
        (("a", "b", "--host", "198.51.100.7"), "is no address of this machine"),
        (("a", "b", "--host", "no such host"), "is no address of this machine"),
        (("a", "b", "--host", "x" * 300), "is no address of this machine"),
        (("a", "b", "-o", "other"), "holds no study"),
        (("a", "b", "-o", "other/file.txt/x"), "other/file.txt"),
        (("--json",), "--json: → needs --results"),
        (("--results",), "holds no study; give the folder of one"),
        (("--pairs", "3"), "--pairs: → is for a new study"),
    ]
    for arguments, said in cases:
        assert said in refused(capsys, *arguments), arguments
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port: {port} → is in use" in refused(capsys, "a", "b", "--port", port)
    assert not (runs / "study").exists()


def test_beyond_this_machine_it_says_so(runs: Path) -> None:
    with served("a", "b", "--pairs", "1", "--host", "0.0.0.0") as (process, link):
        port = link.partition("/join/")[0].rpartition(":")[2]
        assert opened(f"http://127.0.0.1:{port}/join/{link.partition('/join/')[2]}").join("Ada").done == 0
        process.terminate()
        assert process.wait(timeout=60) == 143
        assert process.stderr is not None
        assert "votes travel unencrypted" in process.stderr.read()
    assert os.stat("study").st_mode & 0o077 == 0
