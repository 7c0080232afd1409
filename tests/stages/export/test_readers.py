"""Exports are read without this project: by webdataset, pandas and datasets, in a process that knows nothing of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootpig.stages.export.formats import FORMATS
from tests.stages.export.data import OPTIONS, data_set

READER = """
import glob, json, sys
import numpy

folder, seen = sys.argv[1], {}

import webdataset
for split in ("train", "validation"):
    urls = sorted(glob.glob(f"{folder}/webdataset/data/{split}-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert all(s["png"].size == s["mask.png"].size == s["reference.3.png"].size for s in samples)
    seen["webdataset", split] = {s["__key__"]: [s["json"]["caption"], numpy.asarray(s["png"]).mean()] for s in samples}

try:
    import pandas
except ImportError:
    pandas = None
if pandas is not None:
    import io
    from PIL import Image
    for split in ("train", "validation"):
        rows = pandas.concat(map(pandas.read_parquet, sorted(glob.glob(f"{folder}/parquet/data/{split}-*.parquet"))))
        means = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))).mean() for row in rows["image"]]
        seen["pandas", split] = dict(zip(rows["id"], map(list, zip(rows["caption"], means))))

try:
    import datasets
except ImportError:
    datasets = None
if datasets is not None:
    names = {"parquet": ("id", "image", "mask"), "folder": ("id", "image", "mask"),
             "webdataset": ("__key__", "png", "mask.png")}
    for format, (key, image, mask) in names.items():
        data = datasets.load_dataset(f"{folder}/{format}", cache_dir=f"{sys.argv[2]}/cache/{format}")
        assert set(data) == {"train", "validation"}, data
        for split, rows in data.items():
            seen[format, split] = found = {}
            for row in rows:
                assert row[mask].mode == "L" and row[mask].size == row[image].size
                references = row["references"] if key == "id" else [row[f"reference.{k}.png"] for k in range(4)]
                assert [picture.mode for picture in references] == ["RGB"] * 4
                caption = row["caption"] if key == "id" else row["json"]["caption"]
                found[row[key]] = [caption, numpy.asarray(row[image]).mean()]

assert not any(name.split(".")[0] in ("bootpig", "stages", "storage") for name in sys.modules)
print(json.dumps([[*key, value] for key, value in seen.items()]))
"""


def test_an_export_opens_in_one_line_without_this_project(made: Any, whole: Path, tmp_path: Path) -> None:
    data = data_set(*made)
    expected: dict[str, dict[str, list[Any]]] = {"train": {}, "validation": {}}
    for unit in data.units:
        for sample in data.records(unit):
            split = OPTIONS["parquet"].splits.of(sample.id)
            expected[split][sample.id] = [sample.values["caption"], sample.values["synthesize_brightness"]]
    assert min(map(len, expected.values())) > 1
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    reader = tmp_path / "reader.py"
    reader.write_text(READER)
    read = subprocess.run(
        [sys.executable, "-I", str(reader), str(whole), str(tmp_path)],
        cwd=tmp_path,
        env=environment | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    seen = json.loads(read.stdout.splitlines()[-1])
    wanted = {"webdataset"} | ({"pandas"} if importlib.util.find_spec("pandas") else set())
    wanted |= set(FORMATS) if importlib.util.find_spec("datasets") else set()
    assert {reader for reader, _, _ in seen} == wanted
    for reader_name, split, found in seen:
        assert found.keys() == expected[split].keys(), (reader_name, split)
        for key, (caption, mean) in found.items():
            assert caption == expected[split][key][0] and mean == pytest.approx(expected[split][key][1])
