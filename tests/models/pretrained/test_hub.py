"""Models by hub id and checkpoints by URL, with a real HTTP server: resolving, one-line errors, timeouts."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from bootpig.models.pretrained import downloads, sources
from bootpig.models.pretrained import hub as hub_module
from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.source import PIPELINE, TRANSFORMER, ModelError
from bootpig.models.pretrained.sources import resolve, resolve_all, resolve_file
from tests.models.hub import Hub, Repository, hub

FILES = {"model_index.json": b"{}"}
CHECKPOINT = b"weights" * 10_000
SHA256 = hashlib.sha256(CHECKPOINT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_module, "HUB_SECONDS", 0.5)
        monkeypatch.setattr(downloads, "SECONDS", 0.5)
        yield running


def refusal(*arguments: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve("encode.model", *arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_branch_becomes_a_commit_and_is_asked_for_once(server: Hub) -> None:
    model = server.repositories["someone/model"] = Repository(FILES, branches=("main", "refs/pr/3"))
    found = resolve("encode.model", "someone/model", None, PIPELINE)
    assert found.as_json() == {"id": "someone/model", "commit": model.commit}
    model.files = {**FILES, "new.txt": b""}  # the branch moves on while a run is under way
    assert resolve("train.model", "someone/model", "main", PIPELINE).revision == found.revision != model.commit
    assert resolve("train.model", "someone/model", model.commit).revision == model.commit
    assert resolve("train.model", "someone/model", "refs/pr/3").revision == model.commit
    assert [question for question in server.asked if "/api/models/" in question] == [
        "GET /api/models/someone/model/revision/main",
        f"GET /api/models/someone/model/revision/{model.commit}",
        "GET /api/models/someone/model/revision/refs%2Fpr%2F3",
    ]


def test_each_refusal_says_what_to_do(server: Hub) -> None:
    server.repositories |= {
        "a/gated": Repository(FILES, gated=True),
        "a/model": Repository(FILES),
        "a/broken": Repository(fault=503),
        "a/forbidden": Repository(fault=403),
    }
    assert "'a/gone' is neither a local folder nor on the hub; name a mirror" in refusal("a/gone")
    assert "'a/gated' is gated; accept its licence on its hub page and log in" in refusal("a/gated")
    assert "'a/model' has no revision 'v9'; see the branches" in refusal("a/model", "v9")
    assert "'a/model' has no config.json at 'main'; name a repository of a transf" in refusal(
        "a/model", None, TRANSFORMER
    )
    assert "the hub answered 503 for 'a/broken'; try again later" in refusal("a/broken")
    assert "the hub answered 403 for 'a/forbidden'; log in again" in refusal("a/forbidden")


def test_who_does_not_answer_is_not_waited_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["a/silent"] = Repository(silent=True)
    assert "the hub cannot be reached (ReadTimeout" in refusal("a/silent")
    monkeypatch.setattr(hub_module, "HUB_SECONDS", 60)
    monkeypatch.setattr(sources, "LOOKUP_SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"^encode\.model: no answer within 0\.5 seconds; give a local folder"):
        resolve_all("encode", {"model": lambda: resolve("encode.model", "a/silent")})
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert "the hub cannot be reached (ConnectError" in refusal("a/model")


def test_offline_the_cache_is_enough_and_else_it_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "'a/model' at 'main' is not in the hub's cache, and HF_HUB_OFFLINE is set" in refusal("a/model")
    snapshot = tmp_path / "hub" / "models--a--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (tmp_path / "hub" / "models--a--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--model" / "refs" / "main").write_text("0" * 40)
    assert resolve("encode.model", "a/model", None, PIPELINE).revision == "0" * 40
    assert "HF_HUB_OFFLINE" in refusal("a/model", None, TRANSFORMER)
    assert server.asked == []


def test_all_problems_are_found_at_once(server: Hub) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_all(
            "segment", {"a": lambda: resolve("segment.a", "a/b"), "b": lambda: resolve_file("segment.b", "x.pth")}
        )
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["segment.a", "segment.b"]


def test_a_checkpoint_is_downloaded_once(server: Hub, tmp_path: Path) -> None:
    server.files["sam.pth"] = CHECKPOINT
    source = resolve_file("segment.sam", f"{server.url}/sam.pth", SHA256)
    assert not (tmp_path / "cache").exists(), "looking downloads nothing"
    assert source.as_json() == {"digest": SHA256} and not source.is_local
    path = fetch(source)
    assert path.read_bytes() == CHECKPOINT and path.suffix == ".pth"
    assert fetch(resolve_file("segment.sam", f"{server.url}/sam.pth", SHA256)) == path
    assert [word.split()[0] for word in server.asked] == ["HEAD", "GET"]
    assert resolve_file("segment.sam", str(path)).as_json() == source.as_json(), "a path or a URL: the same model"
    path.write_bytes(b"damaged")
    assert fetch(source).read_bytes() == CHECKPOINT


@pytest.mark.parametrize("fault", ["wrong sha256", "cut", "gone", "silent"])
def test_a_download_that_fails_leaves_one_line_and_no_file(server: Hub, tmp_path: Path, fault: str) -> None:
    server.files["sam.pth"] = CHECKPOINT
    url, sha256 = f"{server.url}/sam.pth?token=secret", SHA256
    source = resolve_file("segment.sam", url, "0" * 64 if fault == "wrong sha256" else sha256)
    if fault == "cut":
        server.cut.add("sam.pth")
    if fault == "gone":
        del server.files["sam.pth"]
    if fault == "silent":
        source = resolve_file_at(server, "a/silent/resolve/main/sam.pth")
    with pytest.raises(ModelError, match=r"^segment\.sam: 'http://.*sam\.pth' ") as caught:
        fetch(source)
    expected = {
        "wrong sha256": f"has sha256 {SHA256}, not {'0' * 64}; fix segment.sam_sha256 or the URL",
        "cut": "cannot be downloaded (ConnectionError: the download ended after 35000 of 70000 bytes); run again",
        "gone": "cannot be downloaded (404 Not Found); run again",
        "silent": "timed out",
    }[fault]
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "cache" / "bootpig").iterdir() if not p.name.endswith(".lock")] == []


def resolve_file_at(server: Hub, path: str) -> sources.ModelSource:
    server.repositories["a/silent"] = Repository({"sam.pth": CHECKPOINT})
    source = resolve_file("segment.sam", f"{server.url}/{path}", SHA256)
    server.repositories["a/silent"].silent = True
    return source


@pytest.mark.parametrize(
    ("url", "sha256", "message"),
    [
        ("{hub}/sam.pth", None, "is a URL; also give the file's sha256 (segment.sam_sha256)"),
        ("http://me:secret@127.0.0.1/sam.pth", SHA256, "contains credentials; download the file by hand"),
        ("{hub}/none.pth?token=secret", SHA256, "answers 404 Not Found; fix the URL"),
        ("http://127.0.0.1:{free}/sam.pth", SHA256, "cannot be reached (ConnectionRefusedError"),
    ],
)
def test_a_bad_url_is_one_line(server: Hub, url: str, sha256: str | None, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_file("segment.sam", url.format(hub=server.url, free=free_port()), sha256)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_local_checkpoint_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_bytes(CHECKPOINT)
    assert resolve_file("segment.sam", str(tmp_path / "sam.pth"), SHA256).is_local
    with pytest.raises(ModelError, match=rf"has sha256 {SHA256}, not {'0' * 64}; give the right file"):
        resolve_file("segment.sam", str(tmp_path / "sam.pth"), "0" * 64)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
