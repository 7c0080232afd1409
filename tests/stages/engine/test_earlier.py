"""Files of earlier results, on a local disk and in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.stages.engine.earlier import earlier_results
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_files_stay_while_others_are_fetched(kind: str, tmp_path: Path) -> None:
    root = Root(str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}")
    (tmp_path / "result").mkdir()
    for name in ("a", "b"):
        (tmp_path / "result" / name).write_text(name)
    published = publish_folder(root, "evaluate/0123456789abcdef/result", tmp_path / "result")
    for name in ("0123456789abcdef", "fedcba9876543210"):
        root.write(f"evaluate/{name}/stage.json", b"{}")
    root.write("evaluate/kept-cut-outs/x.0", b"no result")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (found,) = earlier_results(root, "evaluate/fedcba9876543210", scratch, lambda identity: None)
    first, second = found.fetch(["a"]), found.fetch(["b"])
    assert (first / "a").read_text() == "a" and (second / "b").read_text() == "b"
    assert found.read("a") == b"a" and found.read("c") is None
    root.write(f"{published.path}/a", b"altered")
    assert found.read("a") is None
