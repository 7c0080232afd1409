"""A stage's shards as a webdataset pipeline."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch.utils.data import DataLoader

from bootpig.flows.runs.records import StageRecord, new_run, promote
from bootpig.flows.runs.shards import open_run
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.storage.errors import CorruptPart, StoreError
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root
from bootpig.storage.shards import write_shard
from bootpig.storage.webdatasets import open_shards
from tests.stages.doubles import config as small_config


def fill(root: Root, units: int = 4, samples: int = 3) -> Parts:
    picture = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(picture, "PNG")
    parts = Parts(root, "encode", "0123456789abcdef")
    for unit in range(units):
        ids = [f"{unit}{number}" for number in range(samples)]
        members = []
        for key in ids:
            members += [
                (f"{key}.json", json.dumps({"caption": key}).encode()),
                (f"{key}.target.png", picture.getvalue()),
            ]
            members += [(f"{key}.safetensors", save({"target": torch.full((2,), float(unit))}))]
        rows = [{"id": key, "unit": unit, "status": "ok", "reason": ""} for key in ids]
        parts.commit(unit, rows, pa.schema([]), write_shard(members), "")
    return parts


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(str(tmp_path))
    fill(root)
    return root


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_samples_come_decoded_and_in_order(root: Root) -> None:
    samples = list(open_shards(root, "encode", "0123456789abcdef", [2, 0]))
    assert keys(samples) == ["20", "21", "22", "00", "01", "02"]
    assert samples[0]["json"] == {"caption": "20"} and samples[0]["target.png"].size == (4, 4)
    assert samples[0]["safetensors"]["target"].tolist() == [2.0, 2.0]
    assert samples[0]["__url__"].startswith("encode/0123456789abcdef/part-00002-")


def test_bytes_stay_bytes_if_asked(root: Root) -> None:
    sample = next(iter(open_shards(root, "encode", "0123456789abcdef", [0], decode=False)))
    assert json.loads(sample["json"]) == {"caption": "00"} and isinstance(sample["safetensors"], bytes)


def test_shuffling_follows_the_seed(root: Root) -> None:
    orders = [
        keys(open_shards(root, "encode", "0123456789abcdef", range(4), shuffle=6, seed=seed, decode=False))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 12 and orders[0] != sorted(orders[0])


def test_the_workers_of_a_loader_share_the_shards(root: Root) -> None:
    pipeline = open_shards(root, "encode", "0123456789abcdef", range(4), decode=False)
    # spawned, as on macOS and Windows: a fork of a process with threads, such as this one, may hang or end
    loader = DataLoader(pipeline, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(keys(loader)) == sorted(keys(pipeline))


def test_a_missing_unit_and_a_damaged_shard_are_named(root: Root) -> None:
    with pytest.raises(StoreError, match=r"units \[7\] are not complete"):
        open_shards(root, "encode", "0123456789abcdef", [0, 7])
    pipeline = open_shards(root, "encode", "0123456789abcdef", [0, 1])
    (payload,) = (name for name in root.names("encode/0123456789abcdef") if name.startswith("part-00001-"))
    data = bytearray(root.read(f"encode/0123456789abcdef/{payload}"))
    data[600] ^= 1
    root.write(f"encode/0123456789abcdef/{payload}", bytes(data))
    with pytest.raises(CorruptPart, match="unit 1"):
        list(pipeline)


def test_a_run_opens_by_its_id(root: Root) -> None:
    config: PipelineConfig = small_config(root.local, caption__count=10)
    record = new_run(root, config)
    record.stages["encode"] = StageRecord(fingerprint="0123456789abcdef")
    record.state = "done"
    promote(root, record)
    assert keys(open_run(str(root.local))) == ["00", "01", "02", "10", "11", "12"], "the run's own two units"
    with pytest.raises(InputError, match="did not run it; it ran encode"):
        open_run(str(root.local), record.id, "augment")
