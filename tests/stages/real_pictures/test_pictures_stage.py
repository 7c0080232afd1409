"""The pictures stage on a folder: rows and pixels, growth, changes, duplicates, and files that cannot be used."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.flows.loading import parse_config
from bootpig.models.toy.world import render_scene
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.real_pictures import seen, source
from bootpig.storage import outside
from bootpig.storage.errors import StoreError
from bootpig.storage.shards import read_shard
from tests.stages.doubles import image_bytes
from tests.stages.real_pictures.sets import configured, messages, rows, run, states, write_pictures


@pytest.fixture(autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def samples(root: Path) -> dict[str, dict[str, bytes]]:
    return {key: files for path in sorted(root.rglob("part-*.tar")) for key, files in read_shard(path)}


def test_a_folder_becomes_samples_with_the_same_pixels(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", range(6))
    config = configured(tmp_path / "store", tmp_path / "set", 6)
    assert [report.rows for report in run(config)] == [
        {"ok": 4, "rejected": 0, "failed": 0},
        {"ok": 2, "rejected": 0, "failed": 0},
    ], "the last unit ends with the set"
    made = samples(tmp_path / "store")
    for number, row in enumerate(rows(config)):
        scene = render_scene(f"real/{number}")
        assert (row["name"], row["index"]) == (f"{number:03d}.png", number)
        assert row["id"] == row["sha256"][:16]
        assert (row["caption"], row["object"]) == (scene.caption, scene.kind)
        assert (np.asarray(Image.open(io.BytesIO(made[row["id"]]["png"]))) == scene.image).all()
    assert [report.state for report in run(config)] == ["cached", "cached"]


def test_what_is_added_at_the_end_makes_only_new_units_and_a_change_only_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_pictures(folder, range(8))
    run(configured(tmp_path / "store", folder, 8))
    before = image_bytes(tmp_path / "store")
    write_pictures(folder, range(8, 12))
    grown = configured(tmp_path / "store", folder, 12)
    assert states(grown) == {0: "complete", 1: "complete", 2: "pending"}
    run(grown)
    after = image_bytes(tmp_path / "store")
    assert before.items() < after.items()

    shutil.copy(folder / "011.png", folder / "012.png")  # unused: behind the units of the run
    (folder / "005.txt").write_text("A photo of a red mug, on the left on a sandy beach")
    assert states(grown) == {0: "complete", 1: "stale", 2: "complete"}
    (folder / "005.txt").write_text(render_scene("real/5").caption)
    assert set(states(grown).values()) == {"complete"}, "what counts is the content"

    moved = folder.rename(tmp_path / "moved")
    assert set(states(configured(tmp_path / "store", moved, 12)).values()) == {"complete"}


def test_equal_pictures_are_one_sample_whatever_the_order_of_work(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_pictures(folder, range(8))
    for copy, original in ((3, 1), (6, 1), (7, 5)):
        shutil.copy(folder / f"{original:03d}.png", folder / f"{copy:03d}.png")
    (folder / "005.txt").unlink()  # without a caption it is no sample, so 007 is the first
    config = configured(tmp_path / "forwards", folder, 8)
    run(config)
    found = {row["name"]: row["reason"] for row in rows(config)}
    assert {name: reason for name, reason in found.items() if reason} == {
        "003.png": "duplicate",
        "005.png": "no_caption",
        "006.png": "duplicate",
    }
    told = messages(tmp_path / "forwards")
    assert {told[row["id"]] for row in rows(config) if row["reason"] == "duplicate"} == {
        "003.png: the same as 001.png",
        "006.png: the same as 001.png",
    }
    backwards = Engine(configured(tmp_path / "backwards", folder, 8))
    for unit in (1, 0):
        backwards.run_unit("pictures", unit)
    assert image_bytes(tmp_path / "backwards") == image_bytes(tmp_path / "forwards")

    (folder / "001.txt").write_text("a dog")  # no sample any more: 003 is the first now
    assert states(config) == {0: "stale", 1: "complete"}
    run(config)
    found = {row["name"]: row["reason"] for row in rows(config)}
    assert (found["001.png"], found["003.png"], found["006.png"]) == ("no_object", "", "duplicate")


def broken_set(folder: Path) -> None:
    """One picture of each kind that needs care, named after what becomes of it."""
    write_pictures(folder, range(1))
    plain = Image.fromarray(render_scene("real/1").image)
    wide = Image.new("RGB", (128, 64), "blue")
    wide.paste(plain, (32, 0))
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(name: str, picture: Image.Image, **options: object) -> None:
        picture.save(folder / name, **options)

    save("ok-wide.png", wide)
    save("ok-turned.jpg", wide.convert("RGB"), exif=exif)
    save("ok-cmyk.jpg", plain.convert("CMYK"))
    save("ok-palette.gif", plain.convert("P"))
    save("ok-deep.png", Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257))
    save("ok-animated.webp", plain, save_all=True, append_images=[wide.resize((64, 64))], duration=100)
    save("too_small.png", plain.resize((63, 90)))
    save("transparent.png", Image.new("RGBA", (64, 64), (255, 0, 0, 0)))
    (folder / "unreadable-half.png").write_bytes((folder / "000.png").read_bytes()[:900])
    (folder / "unreadable-text.jpg").write_text("this is no picture")
    (folder / "unreadable-empty.png").write_bytes(b"")
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(folder / "too_large.png", optimize=True)
    save("no_object.png", plain.rotate(1))
    save("no_caption.png", plain.rotate(2))
    for path in folder.glob("*.*"):
        if path.suffix != ".txt" and not path.name.startswith(("000", "no_caption")):
            path.with_suffix(".txt").write_text("A photo of a mug, on a table")
    (folder / "no_object.txt").write_text("sunset over the bay")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")


def test_every_kind_of_file_is_a_sample_or_a_row_with_its_reason(tmp_path: Path) -> None:
    broken_set(tmp_path / "set")
    config = configured(tmp_path / "store", tmp_path / "set", 15, unit_size=15)
    (report,) = run(config)
    assert report.state == "done" and report.rows["failed"] == 0
    found = {row["name"]: row for row in rows(config)}
    assert len(found) == 15
    for name, row in found.items():
        wanted = name.partition(".")[0].partition("-")[0]
        assert (row["reason"] or "ok") == ("ok" if wanted == "000" else wanted), name
    told = messages(tmp_path / "store")
    assert all(found[name]["name"] in told[found[name]["id"]] for name in found if found[name]["reason"])
    assert (found["ok-turned.jpg"]["width"], found["ok-turned.jpg"]["height"]) == (64, 128), "upright"
    made = samples(tmp_path / "store")
    assert all(Image.open(io.BytesIO(files["png"])).size == (64, 64) for files in made.values())
    middle = np.asarray(Image.open(io.BytesIO(made[found["ok-wide.png"]["id"]]["png"])))
    assert (middle == render_scene("real/1").image).all(), "the middle square"


def test_a_large_picture_is_scaled_and_small_ones_may_be_allowed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", range(1), side=200)
    write_pictures(tmp_path / "set", range(1, 2), side=40)
    strict = configured(tmp_path / "a", tmp_path / "set", 2)
    run(strict)
    assert [row["reason"] for row in rows(strict)] == ["", "too_small"]
    loose = configured(tmp_path / "b", tmp_path / "set", 2, min_side=40)
    run(loose)
    assert [row["status"] for row in rows(loose)] == ["ok", "ok"]


def test_captions_from_json_and_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_pictures(folder, range(3))
    (folder / "000.txt").unlink()
    (folder / "000.json").write_text('{"caption": "a dog by the sea", "object": "dog"}')
    (folder / "001.txt").write_bytes("\n  A photo of a mug,\ton the left  \nsecond line".encode("utf-16"))
    (folder / "002.txt").write_bytes(b"\xff\xfe\xfd")
    config = configured(tmp_path / "beside", folder, 3)
    run(config)
    assert [(row["caption"], row["object"], row["reason"]) for row in rows(config)] == [
        ("a dog by the sea", "dog", ""),
        ("A photo of a mug, on the left", "mug", ""),
        (None, None, "no_caption"),
    ]
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "001.png", "text": "A photo of a mug, on"}\n{"file_name": "gone.png", "text": "no form"}'
    )
    listed = configured(tmp_path / "listed", folder, 2, caption_column="text")
    run(listed)
    assert [(row["name"], row["reason"]) for row in rows(listed)] == [("001.png", ""), ("gone.png", "missing")]


def test_files_that_have_not_changed_are_hashed_once_on_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "set", range(4))
    monkeypatch.setattr(outside, "SETTLED_SECONDS", -1.0)
    config = configured(tmp_path / "store", tmp_path / "set", 4)
    run(config)
    assert (Path(os.environ["XDG_CACHE_HOME"]) / "bootpig" / "pictures.sqlite").exists()
    read: list[str] = []
    monkeypatch.setattr(outside.Outside, "read_many", lambda self, paths: read.extend(paths) or {})
    assert states(config) == {0: "complete"} and read == []
    monkeypatch.setattr(seen, "SECONDS", 0.0)
    Path(os.environ["XDG_CACHE_HOME"]).joinpath("bootpig", "pictures.sqlite").write_bytes(b"no database")
    monkeypatch.undo()
    assert states(config) == {0: "complete"}, "a damaged memory is no harm"


def test_a_file_that_changes_after_it_was_listed_fails_its_unit(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", range(4))
    engine = Engine(configured(tmp_path / "store", tmp_path / "set", 4))
    engine.survey("pictures")
    engine.make("pictures").source_digest(0, range(4))  # type: ignore[attr-defined]
    (tmp_path / "set" / "002.txt").write_text("A photo of a boot, here")
    report = engine.run_unit("pictures", 0)
    assert report.state == "failed" and "'002.png' changed while it was read; run again" in report.message
    (tmp_path / "set" / "002.png").unlink()
    report = engine.run_unit("pictures", 0)
    assert report.state == "failed" and "changed while it was read" in report.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 5}, r"pictures\.count: 5 is more than the 3 pictures of '.*set'; lower it or add pictures"),
        ({"url": "{tmp}/nowhere"}, r"pictures\.url: '.*nowhere' → there is no such folder; correct the path"),
        ({"url": "{tmp}/set/000.png"}, r"pictures\.url: '.*000\.png' → is a file; give the folder"),
        ({"url": "{tmp}/bare"}, r"pictures\.captions: 'given' → none of the pictures of '.*bare' has a caption; put"),
        ({"url": "{tmp}/empty"}, r"pictures\.url: '.*empty' → holds no pictures; check the path"),
        ({"url": "{tmp}/tars"}, r"pictures\.url: '.*tars' → holds no pictures; holds \.tar files; set format to webd"),
        ({"format": "webdataset"}, r"pictures\.url: '.*set' → holds no \.tar files; check the path"),
        ({"url": "{tmp}/linked"}, r"pictures\.url: '.*secret\.png' → is a link to a place outside of '.*linked'"),
        (
            {"url": "{tmp}/lists"},
            r"pictures\.url: metadata\.jsonl, line 1 → file_name '\.\./set/000\.png' leads outsid",
        ),
        ({"url": "{tmp}/named"}, r"pictures\.url: .* → the name is not UTF-8; rename it"),
        ({"url": "nosuch://bucket"}, r"pictures\.url: 'nosuch://bucket' cannot be opened"),
    ],
)
def test_a_set_that_cannot_be_used_is_one_line_before_any_work(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_pictures(tmp_path / "set", range(3))
    write_pictures(tmp_path / "bare", range(3))
    for name in ("empty", "tars", "linked", "lists", "named"):
        (tmp_path / name).mkdir()
    for path in (tmp_path / "bare").glob("*.txt"):
        path.unlink()
    (tmp_path / "tars" / "x.tar").write_bytes(b"")
    (tmp_path / "named" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (tmp_path / "linked" / "secret.png").symlink_to(tmp_path / "set" / "000.png")
    (tmp_path / "lists" / "metadata.jsonl").write_text('{"file_name": "../set/000.png"}')
    settings = {"url": tmp_path / "set", "count": 3} | {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in change.items()
    }
    config = configured(tmp_path / "store", **settings)  # type: ignore[arg-type]
    with pytest.raises((InputError, StoreError), match=rf"^{message}") as caught:
        Engine(config).survey("pictures")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


TOY = (Path(__file__).parents[3] / "configs" / "toy.yaml").read_text()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["pictures.url=x", "pictures.count=3"], "pictures: takes the place of caption and synthesize; remove it, or"),
        (["caption=null"], "caption: missing → must be given, or pictures in place of both"),
        (["caption=null", "synthesize=null"], "caption and synthesize: missing → must be given, or pictures"),
        (["pictures.url='pipe:cat x'", "pictures.count=3"], "would run a command; give a folder"),
        (
            ["pictures.url=x", "pictures.count=3", "pictures.image_column=png"],
            "image_column is used by format 'parquet'",
        ),
        (["pictures.url=x", "pictures.count=3", "pictures.captions=openai"], "captions 'openai' needs openai: {model"),
        (["pictures.url=x", "pictures.count=3", "pictures.openai.model=m"], "openai is used by captions 'openai' only"),
        (["pictures.url=x", "pictures.count=0"], "pictures.count: 0 → must be greater than or equal to 1"),
        (["pictures.url=s3://a:b@c/d", "pictures.count=3"], "holds credentials"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(sets: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(TOY, sets)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_that_leaves_its_folder_is_known() -> None:
    outside_ones = ["/etc/passwd", "a/../../b", "..", "\\\\host\\x", "http://x/y", "pipe:cat x", "a\0b"]
    assert all(map(source.leads_outside, outside_ones))
    assert not any(map(source.leads_outside, ["a/b.png", "a..b", "12:30.png"]))
