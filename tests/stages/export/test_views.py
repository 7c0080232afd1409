"""Views and columns without values in exports: they are in all formats, and `datasets` reads them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bootpig.stages.engine.loaded import release
from bootpig.stages.export.formats import FORMATS
from bootpig.stages.export.records import DataSet
from bootpig.stages.registry import STAGES
from bootpig.storage.shards import read_shard
from tests.stages.doubles import Encoder
from tests.stages.export.data import exported
from tests.stages.export.views import DOUBLES, SCENES, data_with_views, kept_views

READER = """
import json, sys
import datasets
datasets.disable_progress_bars()
found = {}
for format in ("parquet", "webdataset", "folder"):
    data = datasets.load_dataset(f"{sys.argv[1]}/{format}", cache_dir=f"{sys.argv[1]}/cache/{format}")
    for rows in data.values():
        for row in rows:
            if format == "webdataset":
                values = row["json"]
                pictures = [row[f"view.{k}.png"] for k in range(2)]
                views = [picture for picture in pictures if picture is not None]
                masks = [row[f"view.{k}.mask.png"] for k in range(2)]
                masks = [picture for picture in masks if picture is not None]
            else:
                values, views, masks = row, row["views"], row["view_masks"]
            assert all(mask.mode == "L" and mask.size == view.size for mask, view in zip(masks, views, strict=True))
            assert len(values["view_identity"]) == len(views)
            found.setdefault(values["id"], []).append([values["view_scenes"], values["synthesize_rare"]])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def with_views(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, Path]:
    """The data set, and a folder with its exports."""
    folder = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        for double in (*DOUBLES, Encoder):
            patch.setitem(STAGES, double.name, double)
        _, data = data_with_views(folder / "store")
        release()
        for name in FORMATS:
            assert exported(data, folder / name, name).done
    return data, folder


def scenes(key: str) -> list[str]:
    return [SCENES[number] for number in kept_views(key)]


def test_views_are_in_all_formats(with_views: tuple[DataSet, Path]) -> None:
    data, folder = with_views
    kept = {record.id: record for unit in data.units for record in data.records(unit)}
    assert {len(record.views) for record in kept.values()} == {0, 1, 2}

    def compare(row: dict[str, Any], views: list[bytes], masks: list[bytes]) -> None:
        record = kept[row["id"]]
        assert views == [view.image for view in record.views] and masks == [view.mask for view in record.views]
        assert row["view_scenes"] == scenes(record.id) == [view.scene for view in record.views]
        assert row["view_identity"] == [0.75] * len(views)
        for number, view, mask in zip(kept_views(record.id), views, masks, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(record.image)))
            assert (np.asarray(Image.open(io.BytesIO(view))) == np.roll(pixels, number + 1, 1)).all()
            assert mask == record.mask
        assert "view_dropped" not in row and "view_views" not in row

    seen = 0
    for path in sorted((folder / "parquet/data").iterdir()):
        for row in pq.read_table(path).to_pylist():
            compare(row, *([entry["bytes"] for entry in row[name]] for name in ("views", "view_masks")))
            seen += 1
    for path in sorted((folder / "webdataset/data").iterdir()):
        for _, members in read_shard(path):
            row = json.loads(members["json"])
            places = range(len(row["view_scenes"]))
            assert sum(name.startswith("view.") for name in members) == 2 * len(places)
            compare(row, [members[f"view.{k}.png"] for k in places], [members[f"view.{k}.mask.png"] for k in places])
            seen += 1
    for path in sorted((folder / "folder/data").rglob("metadata.parquet")):
        for row in pq.read_table(path).to_pylist():
            names = (row["views_file_names"], row["view_masks_file_names"])
            compare(row, *([(path.parent / name).read_bytes() for name in some] for some in names))
            seen += 1
    assert seen == 3 * len(kept)
    card = (folder / "parquet/README.md").read_text()
    assert "| `view_scenes` |" in card and "| `views` |" in card


def test_datasets_reads_views_and_columns_that_are_mostly_empty(with_views: tuple[DataSet, Path]) -> None:
    pytest.importorskip("datasets")
    data, folder = with_views
    read = subprocess.run(
        [sys.executable, "-c", READER, str(folder)],
        cwd=folder,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    expected = {
        key: [scenes(key), 0.5 if int(key, 16) % 7 == 0 else None] for unit in data.units for key in data.ids(unit)
    }
    assert found == {key: [value] * 3 for key, value in expected.items()}
    assert {value[1] for value in expected.values()} == {0.5, None}
