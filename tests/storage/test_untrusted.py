"""A store is untrusted: no name can point outside its folder, and nothing read from it is executed."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import pytest

from bootpig.flows.loading import load_config
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.shardio import unpack
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import canonical_json
from bootpig.storage.folders import read_manifest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root
from bootpig.storage.shards import read_shard, write_shard

PROJECT = Path(__file__).parents[2]
PICKLERS = {"pickle", "dill", "joblib", "shelve", "marshal"}


def archive(*members: tuple[str, bytes]) -> bytes:
    """A tar of the given names and types, each member with four bytes of a valid pickle."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode, info.type = 0, 0o644, kind
            if kind == tarfile.REGTYPE:
                info.size = 4
            else:
                info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(b"\x80\x04N."))
    return stream.getvalue()


def test_members_of_a_shard_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("../escaped.json", "/escaped.json", "fine.pickle")
    samples = list(read_shard(archive(*((name, tarfile.REGTYPE) for name in names))))
    assert samples[-1] == ("fine", {"pickle": b"\x80\x04N."}), "as bytes"
    assert len(samples) == 3
    assert list(tmp_path.iterdir()) == [] and not (tmp_path.parent / "escaped.json").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_shard_holds_plain_files_alone(kind: bytes) -> None:
    with pytest.raises(CorruptPart, match="not a complete plain member"):
        list(read_shard(archive(("fine.json", tarfile.REGTYPE), ("link.json", kind))))


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
                assert options.get("Loader") == "_Loader", file


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("data", [DEEP, b'{"a":' * 100_000, b"9" * 100_000, b"\xff", b"{", b""], ids=range(6))
def test_json_from_outside_raises_nothing_but_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(data)


def test_a_shard_with_deep_json_is_damaged() -> None:
    rows = [{"id": "a", "unit": 0, "status": "ok"}]
    for content in (DEEP, b"[]", b"3", b"null"):
        with pytest.raises(CorruptPart):
            unpack(rows, write_shard([("a.json", content)]))
    with pytest.raises(CorruptPart):
        unpack(rows, write_shard([("b.json", b"{}")]))


def test_a_manifest_with_deep_json_is_damaged(tmp_path: Path) -> None:
    root = Root(f"memory://{tmp_path.name}-deep")
    root.write("result/manifest.json", DEEP)
    with pytest.raises(CorruptPart, match="not readable"):
        read_manifest(root, "result")


def test_yaml_with_deep_nesting_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("a: " + "[" * 5000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_config(file)


def test_every_parser_of_json_has_a_bound() -> None:
    allowed = {"storage/jsonio.py", "flows/cli/commands.py"}  # the second one reads what it has just written
    for package in ("flows", "stages", "storage"):
        for path in (PROJECT / package).rglob("*.py"):
            name = path.relative_to(PROJECT).as_posix()
            assert name in allowed or "json.loads(" not in path.read_text(), name
