"""Pieces of a result that is under way: found by the next process if they are whole, and only those of its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.storage.root import Root


@pytest.fixture(params=["disk", "memory"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StoredCheckpoints:
    url = str(tmp_path / "store") if request.param == "disk" else f"memory://{tmp_path.name}"
    return StoredCheckpoints(Root(url), "evaluate/abc", tmp_path)


def test_the_next_process_finds_what_was_put(stored: StoredCheckpoints) -> None:
    stored.pieces("k" * 64).put("text_only-000000", b"one")
    later = stored.pieces("k" * 64)
    assert later.get("text_only-000000") == b"one"
    assert later.get("text_only-00000") is None
    later.put("text_only-000000", b"two")
    assert later.get("text_only-000000") == b"two"


def test_a_damaged_piece_is_none(stored: StoredCheckpoints, caplog: pytest.LogCaptureFixture) -> None:
    stored.pieces("k" * 64).put("a", b"one")
    ((name, _),) = stored.root.names("evaluate/abc/" + "pieces-" + "k" * 16).items()
    stored.root.write(f"evaluate/abc/pieces-{'k' * 16}/{name}", b"on")
    assert stored.pieces("k" * 64).get("a") is None
    assert "rebuilt" in caplog.text
    assert stored.root.names(f"evaluate/abc/pieces-{'k' * 16}") == {}


def test_another_key_removes_them_and_checkpoints_stay(stored: StoredCheckpoints, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_bytes(b"w")
    stored.save(3, tmp_path / "state")
    stored.pieces("k" * 64).put("a", b"one")
    assert stored.pieces("j" * 64).get("a") is None
    assert stored.pieces("k" * 64).get("a") is None
    assert stored.latest() is not None
    stored.pieces("k" * 64).put("a", b"one")
    stored.clear()
    assert not [name for name in stored.root.folders("evaluate/abc") if name.startswith("pieces-")]
    assert stored.latest() is None and stored.pieces("k" * 64).get("a") is None


def test_kept_pieces_are_of_the_stage_and_stay(stored: StoredCheckpoints, tmp_path: Path) -> None:
    stored.kept("masks").put("FLUX.1 a", b"one")
    stored.pieces("0" * 64).put("x", b"two")
    stored.clear()
    other = StoredCheckpoints(stored.root, "evaluate/def", tmp_path)
    assert other.kept("masks").get("FLUX.1 a") == b"one"
    assert other.kept("others").get("FLUX.1 a") is None
