"""Pictures from webdataset shards, Parquet files, S3 and our own exports; and shards that somebody made up."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bootpig.flows.runs.records import new_run
from bootpig.stages.engine.contract import InputError, Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.export.formats import FORMATS
from bootpig.stages.pictures import decode_png
from bootpig.stages.real_pictures import shards, source, tables
from bootpig.storage.shards import read_shard
from tests.servers.hub import reach, upload_hub
from tests.servers.s3 import s3_bucket
from tests.stages.doubles import STAGES, Cutter, Encoder, Painter, image_bytes
from tests.stages.export.data import OPTIONS, data_set, exported, finished
from tests.stages.real_pictures.sets import configured, rows, run, states, write_pictures


def write_tars(folder: Path, target: Path, per_shard: int = 3) -> None:
    """The files of a folder as shards, written by tarfile, whose headers have times and owners."""
    target.mkdir(parents=True, exist_ok=True)
    pictures = sorted(folder.glob("*.png"))
    for begin in range(0, len(pictures), per_shard):
        with tarfile.open(target / f"shard-{begin // per_shard}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for path in pictures[begin : begin + per_shard]:
                for file in (path, path.with_suffix(".txt")):
                    archive.add(file, f"./{'long/' * 25}{file.name}")
                archive.addfile(tarfile.TarInfo(f"./{'long/' * 25}{path.stem}.mask.png"))


def write_tables(folder: Path, target: Path, per_file: int = 3) -> None:
    target.mkdir(parents=True, exist_ok=True)
    pictures = sorted(folder.glob("*.png"))
    for begin in range(0, len(pictures), per_file):
        some = pictures[begin : begin + per_file]
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in some],
            "text": [path.with_suffix(".txt").read_text() for path in some],
        }
        pq.write_table(pa.table(columns), target / f"{begin // per_file}.parquet", row_group_size=2)


def test_all_formats_hold_the_same_and_grow_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS", 1)
    monkeypatch.setattr(shards, "AT_ONCE", 2)
    write_pictures(tmp_path / "folder", range(8))
    write_tars(tmp_path / "folder", tmp_path / "webdataset")
    write_tables(tmp_path / "folder", tmp_path / "parquet")
    made = {}
    for format in ("folder", "webdataset", "parquet"):
        extra = {"caption_column": "text"} if format == "parquet" else {}
        config = configured(tmp_path / f"of-{format}", tmp_path / format, 8, format=format, **extra)
        run(config)
        found = rows(config)
        assert {row["status"] for row in found} == {"ok"}, found
        payloads = {p.name: p.read_bytes() for p in (tmp_path / f"of-{format}").rglob("part-*.tar")}
        made[format] = ([(row["id"], row["caption"], row["object"]) for row in found], payloads)
    assert made["folder"] == made["webdataset"] == made["parquet"]

    write_pictures(tmp_path / "folder", range(8, 10))
    write_tars(tmp_path / "folder", tmp_path / "webdataset")  # the last shard grows, the others have new times
    write_tables(tmp_path / "folder", tmp_path / "parquet")
    for format in ("webdataset", "parquet"):
        extra = {"caption_column": "text"} if format == "parquet" else {}
        grown = configured(tmp_path / f"of-{format}", tmp_path / format, 10, format=format, **extra)
        assert states(grown) == {0: "complete", 1: "complete", 2: "pending"}


def test_one_shard_is_a_set_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "folder", range(2))
    write_tars(tmp_path / "folder", tmp_path / "tars")
    config = configured(tmp_path / "store", tmp_path / "tars" / "shard-0.tar", 2, format="webdataset")
    run(config)
    assert [row["status"] for row in rows(config)] == ["ok", "ok"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, object]:
    class Whole(Cutter):
        """Rejects nothing."""

        def make(self, sample: Sample) -> Sample:
            made = super().make(sample.renamed("1" * 16))
            return made.renamed(sample.id)

    with pytest.MonkeyPatch.context() as patch:
        for double in (Painter, Whole, Encoder):
            patch.setitem(STAGES, double.name, double)
        engine, record = finished(tmp_path_factory.mktemp("exports") / "store", 6, 3)
        release()
    return engine, record


def pixels(folder: Path) -> set[bytes]:
    files = [files for path in folder.rglob("part-*.tar") for _, files in read_shard(path)]
    return {decode_png(members["png"]).tobytes() for members in files}


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_a_source_with_the_same_pictures(finished_run, format: str, tmp_path: Path) -> None:
    engine, record = finished_run
    exported(data_set(engine, record), tmp_path / "exported", format)
    config = configured(tmp_path / "store", tmp_path / "exported", 6, format=format)
    run(config)
    drawn = pixels(Path(engine.root.path) / "segment")
    again = pixels(tmp_path / "store")
    assert again == drawn and len(again) == 6
    kept = {row["caption"] for marker in engine.survey("caption").markers.values() for row in marker.rows}
    assert {row["caption"] for row in rows(config)} == kept
    assert new_run(Engine(config).root, config).units == [0, 1]


def test_a_split_of_an_export_is_a_source(finished_run, tmp_path: Path) -> None:
    engine, record = finished_run
    for format in FORMATS:
        exported(data_set(engine, record), tmp_path / format, format)
    split = {"parquet": "data/train-*.parquet", "webdataset": "data/train-*.tar", "folder": "data/train"}
    captions = []
    for format, below in split.items():
        config = configured(tmp_path / f"{format}-store", tmp_path / format / below, 3, 3, format=format)
        run(config)
        captions.append([row["caption"] for row in rows(config) if row["status"] == "ok"])
    train = [key for unit in data_set(engine, record).units for key in data_set(engine, record).ids(unit)]
    train = [key for key in train if OPTIONS["parquet"].splits.of(key) == "train"]
    kept = {row["id"]: row["caption"] for marker in engine.survey("caption").markers.values() for row in marker.rows}
    assert 3 <= len(train) < 6 and all(found == [kept[key] for key in train[:3]] for found in captions)
    with pytest.raises(InputError, match="there is no such file"):
        run(configured(tmp_path / "none", tmp_path / "parquet/data/test-*.parquet", 3, format="parquet"))


def test_a_table_of_a_folder_is_not_trusted(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", range(2))

    def refused(message: str, table: pa.Table | bytes) -> None:
        path = tmp_path / "set/metadata.parquet"
        path.write_bytes(table) if isinstance(table, bytes) else pq.write_table(table, path)
        with pytest.raises(InputError, match=message):
            run(configured(tmp_path / "store", tmp_path / "set", 1))

    refused("'metadata.parquet' → is not a readable Parquet file", b"PAR1 cut off")
    refused("line 1 → has no file_name", pa.table({"caption": ["A photo of a boot, on a table"]}))
    refused("line 2 → has no file_name", pa.table({"file_name": ["000.png", None]}))
    refused("leads outside of its folder", pa.table({"file_name": ["../000.png"]}))
    refused("names '000.png' again", pa.table({"file_name": ["000.png", "000.png"]}))


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_on_the_hub_is_a_source(
    finished_run, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, record = finished_run
    with upload_hub() as server:
        reach(server, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_writes_all_of_it")
        exported(data_set(engine, record), "hf://datasets/me/set", format)
        config = configured(tmp_path / "store", "hf://datasets/me/set", 6, format=format)
        run(config)
    assert pixels(tmp_path / "store") == pixels(Path(engine.root.path) / "segment")
    kept = {row["caption"] for marker in engine.survey("caption").markers.values() for row in marker.rows}
    assert {row["caption"] for row in rows(config)} == kept


def test_a_set_on_s3_is_read_as_one_on_a_disk(tmp_path: Path) -> None:
    write_pictures(tmp_path / "folder", range(4))
    write_tars(tmp_path / "folder", tmp_path / "tars")
    write_tables(tmp_path / "folder", tmp_path / "tables")
    with s3_bucket():
        fs = fsspec.filesystem("s3")
        for name in ("folder", "tars", "tables"):
            fs.put(str(tmp_path / name), f"s3://data/{name}", recursive=True)
        for name, format in (("folder", "folder"), ("tars", "webdataset"), ("tables", "parquet")):
            extra = {"caption_column": "text"} if format == "parquet" else {}
            for place in (tmp_path / name, f"s3://data/{name}"):
                store = tmp_path / f"{name}-{'s3' if isinstance(place, str) else 'disk'}"
                run(configured(store, place, 4, format=format, **extra))
            assert image_bytes(tmp_path / f"{name}-s3") == image_bytes(tmp_path / f"{name}-disk")
            assert image_bytes(tmp_path / f"{name}-s3")


def _with(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        good = tarfile.TarInfo("good.png")
        good.size = 3
        archive.addfile(good, io.BytesIO(b"png"))
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _link(kind: bytes) -> bytes:
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return _with(member)


def _damaged() -> bytes:
    data = bytearray(_with(tarfile.TarInfo("b.txt"), b"A photo of a mug, here"))
    data[1024 + 200] ^= 1  # in the second header
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: _with(tarfile.TarInfo("../../x.png"), b"x"),
            r"its member '\.\./\.\./x\.png' leads outside; the shard is",
        ),
        (lambda: _with(tarfile.TarInfo("/etc/x.png"), b"x"), r"its member '/etc/x\.png' leads outside"),
        (lambda: _link(tarfile.SYMTYPE), r"its member 'a\.png' is not a plain file"),
        (lambda: _link(tarfile.LNKTYPE), r"its member 'a\.png' is not a plain file"),
        (lambda: _link(tarfile.FIFOTYPE), r"its member 'a\.png' is not a plain file"),
        (lambda: _with(tarfile.TarInfo("b.png"), b"x" * 9000)[:5000], r"is cut short; get it again"),
        (_damaged, r"is damaged at byte 1024; get it again"),
        (lambda: b"<html>not found</html>" * 60, r"is not a readable tar file \(ReadError\)"),
        (lambda: b"", r"is not a readable tar file"),
    ],
)
def test_a_shard_that_means_no_good_is_refused_before_any_work(
    tmp_path: Path, data: Callable[[], bytes], message: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.tar").write_bytes(data())
    with pytest.raises(InputError, match=rf"^pictures\.url: 'x\.tar' → {message}"):
        Engine(configured(tmp_path / "store", tmp_path / "set", 1, format="webdataset")).survey("pictures")


def test_a_member_that_is_too_large_is_a_row_and_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "folder", range(3))
    write_tars(tmp_path / "folder", tmp_path / "tars")
    for module in (shards, source):
        monkeypatch.setattr(module, "MAX_BYTES", 100)
    config = configured(tmp_path / "store", tmp_path / "tars", 3, format="webdataset")
    run(config)
    assert [row["reason"] for row in rows(config)] == ["too_large"] * 3


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"jpg": [b"x"], "caption": ["a"]},
            {},
            r"pictures\.image_column: 'image' → is no column of 'x\.parquet', which",
        ),
        ({"image": [b"x"]}, {}, r"pictures\.caption_column: 'caption' → is no column of 'x\.parquet', which has image"),
        ({"image": ["/etc/passwd"], "caption": ["a"]}, {}, r"pictures\.image_column: 'image' → holds string in 'x\.p"),
        ({"image": [b"x"], "caption": ["a"]}, {"count": 2}, r"pictures\.count: 2 is more than the 1 pictures of"),
        (None, {}, r"pictures\.url: 'x\.parquet' → is not a readable Parquet file \("),
    ],
)
def test_a_table_without_what_it_should_have_is_named(
    tmp_path: Path, columns: dict[str, list[object]] | None, settings: dict[str, int], message: str
) -> None:
    (tmp_path / "set").mkdir()
    if columns is None:
        (tmp_path / "set" / "x.parquet").write_bytes(b"PAR1 and nothing else")
    else:
        pq.write_table(pa.table(columns), tmp_path / "set" / "x.parquet")
    config = configured(tmp_path / "store", tmp_path / "set", settings.get("count", 1), format="parquet")
    with pytest.raises(InputError, match=rf"^{message}"):
        Engine(config).survey("pictures")


def test_rows_without_a_picture_are_rows_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    columns = {
        "image": [{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": None}, None],
        "caption": ["A photo of a mug, here", None, "A photo of a mug, here"],
    }
    pq.write_table(pa.table(columns), tmp_path / "set" / "x.parquet")
    config = configured(tmp_path / "store", tmp_path / "set", 3, format="parquet")
    run(config)
    assert [row["reason"] for row in rows(config)] == ["missing"] * 3
