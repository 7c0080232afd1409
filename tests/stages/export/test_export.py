"""Exports of a data set: what is in them, equal bytes, and going on after an interruption."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from bootpig.flows.cli.main import main
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.export import formats
from bootpig.stages.export.formats import FORMATS, Shard
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.run import open_target
from bootpig.stages.export.splits import Splits
from bootpig.stages.export.target import SCRATCH
from bootpig.stages.pictures import decode_mask
from bootpig.storage.errors import CorruptPart, StoreFull
from bootpig.storage.shards import read_shard
from tests.servers.s3 import s3_bucket
from tests.stages import doubles as small
from tests.stages.doubles import doubles
from tests.stages.export.data import OPTIONS, SHARD_BYTES, data_set, exported, files, finished

__all__ = ["doubles"]

PROJECT = Path(__file__).parents[3]


def stored(engine: Engine, stage: str) -> dict[str, dict[str, bytes]]:
    survey = engine.survey_all(engine.graph.maps())[stage]
    root = engine.root.local
    assert root is not None
    return {
        key: members
        for marker in survey.markers.values()
        for key, members in read_shard(root / survey.path / marker.payload)
    }


def test_parquet_holds_what_the_store_holds(made, whole: Path) -> None:
    engine, _ = made
    cut_outs, augmented, encoded = (stored(engine, stage) for stage in ("segment", "augment", "encode"))
    assert 0 < len(encoded) < len(cut_outs) < 30, "segment and encode reject some"
    rows = [row for path in sorted((whole / "parquet/data").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert {row["id"] for row in rows} == set(encoded) and len(rows) == len(encoded)
    for row in rows:
        key = row["id"]
        assert row["image"] == {"bytes": cut_outs[key]["png"], "path": f"{key}.png"}
        mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        assert (mask == 255 * decode_mask(cut_outs[key]["mask.json"], *mask.shape)).all()
        assert [r["bytes"] for r in row["references"]] == [augmented[key][f"reference{k}.png"] for k in range(4)]
        assert row["caption"] == json.loads(augmented[key]["json"])["caption"] and row["object"] in row["caption"]
        pixels = np.asarray(Image.open(io.BytesIO(cut_outs[key]["png"])))
        assert row["synthesize_brightness"] == pytest.approx(pixels.mean())
        assert row["seed"] == engine.config.seed


def test_all_formats_hold_the_same(whole: Path) -> None:
    def tars() -> Iterator[tuple[str, str, bytes, bytes, list[bytes]]]:
        for path in sorted((whole / "webdataset/data").iterdir()):
            for key, members in read_shard(path):
                references = [members[f"reference.{k}.png"] for k in range(4)]
                assert list(members)[:2] == ["png", "mask.png"] and list(members)[-1] == "json"
                yield key, json.loads(members["json"])["caption"], members["png"], members["mask.png"], references

    def rows() -> Iterator[tuple[str, str, bytes, bytes, list[bytes]]]:
        for path in sorted((whole / "parquet/data").iterdir()):
            for row in pq.read_table(path).to_pylist():
                references = [reference["bytes"] for reference in row["references"]]
                yield row["id"], row["caption"], row["image"]["bytes"], row["mask"]["bytes"], references

    def folders() -> Iterator[tuple[str, str, bytes, bytes, list[bytes]]]:
        for path in sorted((whole / "folder/data").rglob("metadata.parquet")):
            for line in pq.read_table(path).to_pylist():
                names = [line["file_name"], line["mask_file_name"], *line["references_file_names"]]
                image, mask, *references = [(path.parent / name).read_bytes() for name in names]
                yield line["id"], line["caption"], image, mask, references

    assert sorted(tars()) == sorted(rows()) == sorted(folders())


def test_shards_are_no_larger_than_asked_and_more_than_one(whole: Path) -> None:
    sizes = [path.stat().st_size for path in (whole / "webdataset/data").iterdir()]
    assert len(sizes) > 2 and max(sizes) <= SHARD_BYTES + 10240  # the end of a tar archive is padded to 10240 bytes
    assert len(list((whole / "parquet/data").iterdir())) > 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_export_goes_on_with_the_same_bytes(
    made, whole: Path, tmp_path: Path, name: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    finish, start = FORMATS[name].finish, Shard.__init__

    def once(shard: Shard, *arguments: object) -> None:
        start(shard, *arguments)  # type: ignore[arg-type]
        started.append(shard.name)

    def stopping(shard: Shard) -> object:
        if len(started) > stop:
            raise KeyboardInterrupt
        return finish(shard)

    monkeypatch.setattr(Shard, "__init__", once)
    monkeypatch.setattr(FORMATS[name], "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        exported(data_set(*made), tmp_path / "to", name)
    assert not (tmp_path / "to" / "README.md").exists() and not (tmp_path / "to" / SCRATCH).exists()
    monkeypatch.setattr(FORMATS[name], "finish", finish)
    before = started.copy()
    kept = {shard.name for shard in open_target(data_set(*made), str(tmp_path / "to"), OPTIONS[name]).shards}
    started.clear()
    assert exported(data_set(*made), tmp_path / "to", name).done
    made_again = {f"{shard}{FORMATS[name].extension}" for shard in started}
    assert not made_again & kept and (kept or stop == 1) and set(before) & set(started)
    assert files(tmp_path / "to") == files(whole / name)


def test_a_killed_export_leaves_no_half_shard_and_goes_on(made, whole: Path, tmp_path: Path) -> None:
    engine, record = made
    kill = (
        "import os, signal, sys\n"
        "from bootpig.stages.export import formats, target\n"
        "add, done = target.FolderTarget.add, []\n"
        "def dying(self, shard):\n"
        "    done.append(shard)\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    add(self, shard)\n"
        "target.FolderTarget.add = dying\n"
        "from bootpig.flows.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["export", record.id, "--root", engine.root.url, "--to", str(tmp_path / "to"), "--format", "webdataset"]
    arguments += ["--split", "validation=0.3", "--shard-bytes", str(SHARD_BYTES)]
    killed = subprocess.run([sys.executable, "-c", kill, *arguments], cwd=PROJECT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    uninterrupted = files(whole / "webdataset")
    shards = {name: data for name, data in files(tmp_path / "to").items() if name.startswith("data/")}
    assert len(shards) == 3 and shards.items() <= uninterrupted.items()
    assert (tmp_path / "to" / SCRATCH).is_dir(), "a kill cannot clean up"
    assert main(arguments) == 0
    assert files(tmp_path / "to") == uninterrupted


def test_a_full_disk_keeps_the_finished_shards(
    made, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = shutil.copyfileobj, []

    def full(source, stream, length: int) -> None:
        copied.append(stream)
        if len(copied) > 2:
            stream.write(source.read(1000))
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, stream, length)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(StoreFull, match=r"^--to: .* finished shards are kept$"):
            exported(data_set(*made), tmp_path / "to", "webdataset")
    left, uninterrupted = files(tmp_path / "to"), files(whole / "webdataset")
    shards = {name: data for name, data in left.items() if name.startswith("data/")}
    assert len(shards) == 2 and shards.items() <= uninterrupted.items()
    assert exported(data_set(*made), tmp_path / "to", "webdataset").done
    assert files(tmp_path / "to") == uninterrupted


def test_no_folder_has_more_files_than_the_hub_takes(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FILES_PER_FOLDER", 9)
    data = data_set(*made)
    exported(data, tmp_path / "to", "folder")
    counts = [len(list(folder.iterdir())) for folder in (tmp_path / "to/data").rglob("reference")]
    assert max(counts) == 8 and sum(counts) == 4 * data.total, "two samples with four references"


def test_a_complete_export_is_left_alone_and_a_lost_shard_is_made_again(made, whole: Path, tmp_path: Path) -> None:
    target = exported(data_set(*made), tmp_path / "to", "parquet")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    exported(data_set(*made), tmp_path / "to", "parquet")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    lost = tmp_path / "to" / target.of("train")[1].name
    lost.unlink()
    exported(data_set(*made), tmp_path / "to", "parquet")
    assert files(tmp_path / "to") == files(whole / "parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_any_file_system_takes_the_same_bytes(made, whole: Path, tmp_path: Path, name: str) -> None:
    url = f"memory://{tmp_path.name}/{name}"
    assert exported(data_set(*made), url, name).done
    fs, path = fsspec.url_to_fs(url)
    found = {file.removeprefix(path).lstrip("/"): fs.cat_file(file) for file in fs.find(path)}
    assert found == files(whole / name)


def test_s3_takes_the_same_bytes_and_a_missing_bucket_is_one_line(
    made, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_bucket() as faults:
        faults.rate, faults.in_a_row = 0.1, 1
        assert exported(data_set(*made), "s3://data/out", "webdataset").done
        faults.rate = 0.0
        fs = fsspec.url_to_fs("s3://data")[0]
        fs.invalidate_cache()
        found = {name.removeprefix("data/out/"): fs.cat_file(name) for name in fs.find("data/out")}
        assert main(["export", "latest", "--root", made[0].root.url, "--to", "s3://nothing/out"]) == 2
    assert found == files(whole / "webdataset")
    said = capsys.readouterr().err
    assert said.startswith("--to: 's3://nothing/out'") and "no such bucket" in said and said.count("\n") == 1


def test_the_card_and_the_croissant_metadata_describe_the_files(made, whole: Path) -> None:
    engine, record = made
    text = (whole / "parquet/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    (config,) = head["configs"]
    assert {entry["split"]: entry["path"] for entry in config["data_files"]} == {
        "train": "data/train-*.parquet",
        "validation": "data/validation-*.parquet",
    }
    assert head["size_categories"] == ["n<1K"] and "license" not in head
    cut_out, encoded = (len(stored(engine, stage)) for stage in ("segment", "encode"))
    assert record.id in text and f"| segment | 30 | {cut_out} | blank {30 - cut_out} | 0 |" in text
    assert f"| encode | {cut_out} | {encoded} | blank {cut_out - encoded} | 0 |" in text
    assert "| `synthesize_brightness` |" in text
    for number in range(4):
        assert Image.open(whole / f"parquet/samples/{number}.png").size[1] == 64
        assert f"samples/{number}.png" in text
    for name in FORMATS:
        facts = json.loads((whole / name / "croissant.json").read_text())
        objects = [entry for entry in facts["distribution"] if entry["@type"] == "cr:FileObject"]
        assert len(objects) > 2
        for entry in objects:
            data = (whole / name / entry["contentUrl"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"] and entry["contentSize"] == f"{len(data)} B"


def test_models_are_named_with_their_commit_and_licence(made, tmp_path: Path) -> None:
    engine, record = made
    data = data_set(engine, record)
    painter = tmp_path / "painter"
    painter.mkdir()
    (painter / "README.md").write_text("---\nlicense: openrail++\n---\n")
    data.config = engine.config.model_copy(
        update={"synthesize": engine.config.synthesize.model_copy(update={"model": str(painter)})}
    )
    path = f"{data.parts['synthesize'].folder}/stage.json"
    before = engine.root.read(path)
    try:
        engine.root.write(path, json.dumps({"models": {"model": {"digest": "ab" * 32}}}).encode())
        exported(data, tmp_path / "to", "webdataset")
    finally:
        engine.root.write(path, before)
    text = (tmp_path / "to/README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "openrail++"
    assert "| synthesize.model | painter | `abababababab` | openrail\\+\\+ |" in text
    assert str(tmp_path) not in text, "a path of this machine says nothing to others"
    _, members = next(read_shard(next((tmp_path / "to/data").iterdir())))
    assert json.loads(members["json"])["synthesize_model"] == f"painter@{'ab' * 32}"


def test_a_damaged_unit_ends_the_export_and_is_named(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set(*made)
    read = type(data.root).read

    def damaged(root, path: str) -> bytes:
        found = read(root, path)
        return found[:-600] + b"x" + found[-599:] if "augment" in path and path.endswith(".tar") else found

    monkeypatch.setattr(type(data.root), "read", damaged)
    with pytest.raises(CorruptPart, match="augment unit 0"):
        exported(data, tmp_path / "to", "parquet")


def test_splits_depend_on_the_id_alone() -> None:
    ids = [hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(4000)]
    one, two = Splits.parse(["validation=0.1"]), Splits.parse(["validation=0.1", "test=0.1"])
    of_one, of_two = [one.of(key) for key in ids], [two.of(key) for key in ids]
    assert 330 <= of_one.count("validation") <= 470 and 330 <= of_two.count("test") <= 470
    moved = {(a, b) for a, b in zip(of_one, of_two, strict=True) if a != b}
    assert moved == {("train", "test")}, "a split that is added takes from train only"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], "--split: 'validation' → the fraction must be above 0"),
        (["--split", "validation=some"], "--split: 'validation=some' → the fraction must be above 0"),
        (["--split", "validation=1.5"], "the fraction must be above 0 and below 1"),
        (["--split", "validation=nan"], "the fraction must be above 0 and below 1"),
        (["--split", "train=0.5"], "a name has letters, digits"),
        (["--split", "a b=0.5"], "a name has letters, digits"),
        (["--split", "a=0.1", "--split", "a=0.2"], "a is given twice"),
        (["--split", "a=0.6", "--split", "b=0.4"], "the fractions add up to 1"),
        (["--format", "csv"], "--format: 'csv' → choose from parquet, webdataset, folder"),
        (["--shard-bytes", "3"], "--shard-bytes: 3 → must be from"),
        (["--to", "hf://a/b"], "is not the repository of a data set; write hf://datasets/owner/name"),
        (["--private"], "--private: → is for a repository"),
        (["--to", "hf://datasets/a/b", "--shard-bytes", "60000000000"], "the hub takes files of at most 50000000000"),
        (["--to", "nofs://x"], "--to: 'nofs://x' cannot be opened"),
        (["--to", "s3://user:secret@bucket/x"], "contains credentials"),
        (["--to", "{file}"], "is a file; choose an empty folder"),
        (["--to", "{file}/below"], "--to: "),
        (["--to", "/sys/export"], "choose a writable folder"),
        (["--to", "{full}"], "is not empty, and holds no export"),
        (["--to", "{other}"], "holds another export"),
        (["--set", "seed=1"], "--set: → needs a configuration"),
        (["--root", "{empty}"], "run: 'latest' → no run in"),
    ],
)
def test_bad_input_is_one_line_and_2(
    made, whole: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = made
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    places = {"file": full / "notes.txt", "full": full, "other": whole / "webdataset", "empty": tmp_path / "empty"}
    before = files(whole / "webdataset")
    given = [word.format(**places) for word in arguments]
    assert main(["export", "latest", "--root", engine.root.url, "--to", str(tmp_path / "to"), *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "secret" not in said
    assert not (tmp_path / "to").exists() and files(full) == {"notes.txt": b"mine"}
    assert files(whole / "webdataset") == before


def test_a_run_without_a_finished_data_set_is_refused(
    tmp_path: Path, doubles, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, record = finished(tmp_path / "store", 8, 4)
    survey = engine.survey("segment")
    engine.root.remove(f"{survey.path}/{survey.markers[1].payload}")
    command = ["export", record.id, "--root", engine.root.url, "--to", str(tmp_path / "to")]
    assert main(command) == 2
    assert "1 of 2 units of segment are not complete (1)" in capsys.readouterr().err
    del record.stages["encode"]
    record.save(engine.root)
    assert main(command) == 2
    assert "it did not run encode" in capsys.readouterr().err
    with pytest.raises(InputError, match="units of segment"):
        DataSet.of_surveys(engine.root, engine.config, engine.survey_all(engine.graph.maps()))
    assert not (tmp_path / "to").exists()


def test_a_unit_made_again_upstream_makes_the_data_set_stale(tmp_path: Path, doubles) -> None:
    engine, record = finished(tmp_path / "store", 8, 4)
    small.FAULTS["segment"] = set()
    before = small.Cutter.make
    small.Cutter.make = lambda self, sample: sample.rejected("blank")  # type: ignore[method-assign]
    try:
        assert engine.run_unit("segment", 0, force=True).state == "done"
    finally:
        small.Cutter.make = before  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"1 of 2 units of augment are not complete \(0\)"):
        data_set(engine, record)
