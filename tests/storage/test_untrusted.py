"""A store is not trusted: no name leads out of its folder, and nothing that is read from it is ever run."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import pytest

from storage.errors import CorruptPart
from storage.fingerprint import canonical_json
from storage.folders import read_manifest
from storage.root import Root
from storage.shards import read_shard

PROJECT = Path(__file__).parents[2]
PICKLERS = {"pickle", "dill", "joblib", "shelve", "marshal"}


def hostile() -> bytes:
    """A tar with a way up, an absolute name, a link, a device, and pickled bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("../escaped.json", "/tmp/escaped.json", "fine.pickle"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"\x80\x04N."))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.json")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return stream.getvalue()


def test_members_of_a_shard_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = dict(read_shard(hostile()))
    assert samples["fine"] == {"pickle": b"\x80\x04N."}, "as bytes"
    assert all(data == b"\x80\x04N." for sample in samples.values() for data in sample.values()), "no link is followed"
    assert list(tmp_path.iterdir()) == [] and not (tmp_path.parent / "escaped.json").exists()


@pytest.mark.parametrize(
    ("folder", "name"),
    [("0" * 16, "../escape"), ("0" * 16, "/etc/passwd"), ("0" * 16, "a/../../b"), ("..", "a"), ("", "a")],
)
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    root = Root(f"memory://{tmp_path.name}")
    root.write("result/manifest.json", canonical_json({"folder": folder, "files": {name: {"sha256": "0", "size": 1}}}))
    with pytest.raises(CorruptPart, match="outside"):
        read_manifest(root, "result")


def test_no_module_unpickles_or_unpacks() -> None:
    """`torch.load` only with weights_only; no pickle, no archive unpacked to a disk, YAML by a safe loader."""
    for file in (p for package in ("flows", "models", "stages", "storage") for p in (PROJECT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in names}, (
                    file
                )
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            call, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert node.func.attr not in ("extractall", "extract", "unpack_archive"), file
            if call == "torch.load":
                assert options.get("weights_only") == "True", file
            if call in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", file
            if call == "yaml.load":
                assert options.get("Loader") == "_UniqueKeys", file
