"""Exports to a repository on a hub on loopback: what is there in the end, faults, a kill, and who may write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from bootpig.flows.cli.main import main
from bootpig.stages.export import repository
from bootpig.stages.export.formats import FORMATS
from tests.servers.hub import Fault, Stored, UploadHub, reach, upload_hub
from tests.stages.export.data import SHARD_BYTES, data_set, exported, files

PROJECT = Path(__file__).parents[3]
NAME, URL = "datasets/me/teapots", "hf://datasets/me/teapots"
TOKEN = "hf_writes_all_of_it"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadHub]:
    with upload_hub() as running:
        reach(running, monkeypatch)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(repository, "COMMIT_SECONDS", 0.0)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def arguments(made, *more: str, to: str = URL, format: str = "webdataset") -> list[str]:
    given = ["export", made[1].id, "--root", made[0].root.url, "--to", to, "--format", format]
    return [*given, "--split", "validation=0.3", "--shard-bytes", str(SHARD_BYTES), *more]


def without_card(found: dict[str, bytes]) -> dict[str, bytes]:
    """The card names the place."""
    return {name: data for name, data in found.items() if name not in ("README.md", ".gitattributes")}


def uploads(server: UploadHub) -> list[str]:
    return [word for word in server.asked if word.startswith("PUT")]


@pytest.mark.parametrize("name", FORMATS)
def test_the_repository_holds_what_a_folder_holds(made, whole: Path, server: UploadHub, name: str) -> None:
    target = exported(data_set(*made), URL, name)
    stored = server.repositories[NAME]
    assert target.done and without_card(stored.files) == without_card(files(whole / name))
    card = stored.files["README.md"].decode()
    assert 'load_dataset("me/teapots"' in card and "FOLDER" not in card
    assert yaml.safe_load(card.split("---\n")[1])["configs"]
    first, *between, last = stored.commits
    assert set(first) == {"README.md", "export.json"} and {"README.md", "export.json"} < set(last)
    assert len(between) == len(target.shards) and all("export.json" in commit for commit in between)
    assert not any(TOKEN.encode() in data for data in stored.files.values())


def test_commits_are_rare_and_shards_do_not_stay_on_this_disk(
    made, server: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "COMMIT_SECONDS", 3600.0)
    left: list[int] = []
    add = repository.RepositoryTarget.add

    def counting(target: repository.RepositoryTarget, shard) -> None:
        add(target, shard)
        assert target.root.local is not None
        left.append(sum(path.is_file() for path in target.root.local.rglob("*")))

    monkeypatch.setattr(repository.RepositoryTarget, "add", counting)
    exported(data_set(*made), URL, "webdataset")
    assert len(server.repositories[NAME].commits) == 2 and len(left) > 2 and set(left) == {0}


def test_a_complete_export_is_not_sent_again_and_private_is_kept(
    made, server: UploadHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(made, "--private")) == 0
    said = capsys.readouterr()
    assert said.out.strip() == f"{server.url}/datasets/me/teapots" and TOKEN not in said.err
    assert server.repositories[NAME].private
    server.sent()
    assert main(arguments(made)) == 0
    assert server.sent() == [] and "was complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "how", "times"),
    [("PUT /lfs", 500, 2), ("PUT /lfs", "cut", 2), ("/commit/", 503, 2), ("/commit/", "lost", 1), ("/commit/", 429, 1)],
)
def test_faults_that_pass(made, whole: Path, server: UploadHub, where: str, how: int | str, times: int) -> None:
    server.faults.append(Fault(where, how, times, after=2))
    assert exported(data_set(*made), URL, "webdataset").done
    assert server.faults[0].times == 0
    stored = server.repositories[NAME]
    assert without_card(stored.files) == without_card(files(whole / "webdataset"))
    assert len(stored.commits) == len({tuple(commit) for commit in stored.commits}), "no commit is made twice"


@pytest.mark.parametrize(("where", "how"), [("PUT /lfs", "cut"), ("/commit/", 500)])
def test_a_fault_that_stays_is_one_line_and_the_next_attempt_goes_on(
    made, whole: Path, server: UploadHub, where: str, how: int | str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault(where, how, 10_000, after=3))
    assert main(arguments(made)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"--to: {URL!r} → ") and said.endswith("run again to go on, what was sent is kept")
    server.faults.clear()
    before = uploads(server)
    assert before and main(arguments(made)) == 0
    assert len(set(uploads(server))) == len(server.blobs), "nothing more than the files is sent"
    sent = [word for word in uploads(server)[len(before) :] if word in before[:3]]
    assert not sent, "what was sent is not sent again"
    assert without_card(server.repositories[NAME].files) == without_card(files(whole / "webdataset"))


def test_the_hub_says_why_it_takes_no_more(made, server: UploadHub, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults.append(Fault("/commit/", 403, after=2, says="Private repository storage limit reached"))
    assert main(arguments(made)) == 2
    assert "(403: Private repository storage limit reached); " in capsys.readouterr().err.splitlines()[-1]


def test_a_killed_export_goes_on(made, whole: Path, server: UploadHub) -> None:
    kill = (
        "import os, signal, sys\n"
        "from bootpig.stages.export import repository\n"
        "repository.COMMIT_SECONDS = 0.0\n"
        "send, done = repository.HubRepository.send, []\n"
        "def dying(self, files):\n"
        "    send(self, files)\n"
        "    done.extend(name for name in files if name.endswith('.tar'))\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "repository.HubRepository.send = dying\n"
        "from bootpig.flows.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    killed = subprocess.run(
        [sys.executable, "-c", kill, *arguments(made)], cwd=PROJECT, env=environment, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    stored = server.repositories[NAME]
    state = json.loads(stored.files["export.json"])
    assert not state["done"] and len(state["shards"]) == 2 and b"viewer: false" in stored.files["README.md"]
    before = uploads(server)
    assert len(before) == 3
    assert main(arguments(made)) == 0
    again = uploads(server)[3:]
    assert not set(again) & set(before), "the third was sent, though not committed"
    assert without_card(stored.files) == without_card(files(whole / "webdataset"))
    assert b"viewer" not in stored.files["README.md"]


def test_a_second_export_into_the_repository_ends_the_first(made, whole: Path, server: UploadHub) -> None:
    from bootpig.storage.errors import StoreError

    def second(done: int, total: int, text: str) -> None:
        if done == 12:
            exported(data_set(*made), URL, "webdataset")

    from bootpig.stages.export.run import export, open_target
    from tests.stages.export.data import OPTIONS

    target = open_target(data_set(*made), URL, OPTIONS["webdataset"])
    with pytest.raises(StoreError, match="somebody else has written into it meanwhile"):
        export(data_set(*made), target, OPTIONS["webdataset"], second)
    assert without_card(server.repositories[NAME].files) == without_card(files(whole / "webdataset"))
    assert json.loads(server.repositories[NAME].files["export.json"])["done"]


def test_refused_before_anything_is_sent(
    made, server: UploadHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(data_set(*made), "hf://datasets/me/parquet", "parquet")
    server.repositories |= {
        "datasets/me/readme": Stored(files={"README.md": b"mine"}),
        "datasets/you/theirs": Stored(),
        "datasets/me/damaged": Stored(files={"export.json": b"{"}),
    }
    before = {name: dict(stored.files) for name, stored in server.repositories.items()}
    server.sent()

    def refused(word: str, *more: str, to: str = "hf://datasets/me/new") -> None:
        assert main(arguments(made, *more, to=to)) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and word in said and "hf_" not in said, said
        assert {name: stored.files for name, stored in server.repositories.items()} == before
        assert [word for word in server.sent() if "/api/repos/" not in word] == []

    refused("with --format parquet", to="hf://datasets/me/parquet")
    refused("holds no export", to="hf://datasets/me/readme")
    refused("holds no export", to="hf://datasets/me/damaged")
    refused("may not write there", to="hf://datasets/you/theirs")
    refused("may not write there", to="hf://datasets/you/new")
    refused("--private: ", "--private", to="hf://datasets/me/parquet")
    refused("write hf://datasets/owner/name", to="hf://me/new")
    refused("write hf://datasets/owner/name", to="hf://datasets/me/new/folder")
    monkeypatch.setenv("HF_TOKEN", "hf_only_ever_reads")
    refused("may only read")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown_to_all")
    refused("does not accept the token")
    monkeypatch.delenv("HF_TOKEN")
    refused("needs a login")
