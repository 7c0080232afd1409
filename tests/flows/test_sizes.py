"""Pictures of several sizes, from captions to an export, with the models of the toy world."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load

from bootpig.flows.loading import load_config
from bootpig.flows.runs.plan import plan
from bootpig.flows.runs.records import StageRecord, new_run
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.engine.preflight import preflight
from bootpig.stages.report.gather import collect_examples
from bootpig.storage.parts import Parts
from bootpig.storage.shards import read_shard
from tests.stages.export.data import data_set, exported

TOY = PROJECT / "configs" / "toy.yaml"
SIZES = "[[64, 64], [48, 80], [80, 48]]"
LISTED = (f"synthesize.sizes={SIZES}",)
QUICK = (
    "caption.count=12",
    "unit_size=6",
    "threads=1",
    "synthesize.steps=1",
    "synthesize.min_contrast=0",
    "synthesize.batch_size=3",
    "segment.detection_threshold=0",
    "segment.min_score=0",
    "segment.min_sam_iou=0",
    "segment.border=0",
    "segment.min_area=0",
    "segment.max_area=1",
    "select.min_caption_score=null",
    "select.min_sharpness=null",
    "select.min_outline=null",
    "select.max_detections=null",
    "train.steps=4",
    "train.warmup_steps=0",
    "train.global_batch_size=2",
    "train.sample_every=4",
    "train.validation=0.2",
    "train.validate_every=4",
    "evaluate.steps=1",
)


@pytest.mark.slow
def test_captions_to_export(tmp_path: Path) -> None:
    engine = Engine(load_config(TOY, [f"root={tmp_path / 'store'}", *LISTED, *QUICK]))
    assert preflight(engine, engine.graph.stages) == []
    for stage in engine.graph.maps():
        for unit in engine.units():
            report = engine.run_unit(stage, unit)
            assert report.state == "done", report.message
    surveys = engine.survey_all(engine.graph.maps())
    encoded = surveys["encode"]
    sizes: Counter[tuple[int, int]] = Counter()
    for unit, marker in encoded.markers.items():
        rows = {row["id"]: (row["height"], row["width"]) for row in marker.rows}
        for key, members in read_shard(Parts(engine.root, "encode", encoded.fingerprint).payload(unit, marker)):
            tensors = load(members["safetensors"])
            assert tuple(8 * side for side in tensors["target"].shape[1:]) == rows[key]
            assert tensors["references"].shape[2:] == (8, 8)
            sizes[rows[key]] += 1
    assert sizes.keys() == {(64, 64), (48, 80), (80, 48)} and sizes.total() >= 8
    for stage in ("select", "train"):
        report = engine.run_reduce(stage)
        assert report.state == "done", report.message
    release()
    trained = engine.survey("train").result
    assert trained is not None and (tmp_path / "store" / trained.path / "samples/step-000004.png").exists()

    def payload(stage: str, unit: int) -> bytes:
        survey = surveys[stage]
        return Parts(engine.root, stage, survey.fingerprint).payload(unit, survey.markers[unit])

    assert len(collect_examples(payload, [0, 1])) == 6
    record = new_run(engine.root, engine.config)
    record.stages |= {name: StageRecord(fingerprint=made.fingerprint) for name, made in engine.survey_all().items()}
    assert exported(data_set(engine, record), tmp_path / "out", "parquet").done
    rows = [row for file in (tmp_path / "out/data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == sizes.total()
    for row in rows:
        size = (row["encode_width"], row["encode_height"])
        assert {Image.open(io.BytesIO(row[name]["bytes"])).size for name in ("image", "mask")} == {size}
    assert json.loads((tmp_path / "out" / "croissant.json").read_text())


@pytest.mark.parametrize(
    ("sets", "problems"),
    [
        ((), []),
        (("synthesize.sizes=[[64, 64], [48, 72]]",), ["synthesize.sizes: [48, 72]"]),
        (
            ("synthesize.sizes=[[40, 64], [48, 72], [64, 64]]",),
            ["synthesize.sizes: [40, 64]", "synthesize.sizes: [48, 72]"],
        ),
        (
            ("synthesize.sizes=[[64, 64], [96, 160]]", "synthesize.resize=40", "augment.size=40"),
            ["augment.size: 40", "synthesize.sizes: [96, 160], resized to [40, 67]"],
        ),
        (("synthesize.sizes=[]", "synthesize.height=56", "synthesize.width=64"), ["synthesize.height and width: [56"]),
    ],
)
def test_sizes_that_the_base_cannot_take_are_found_before_any_work(
    sets: tuple[str, ...], problems: list[str], tmp_path: Path
) -> None:
    config = load_config(TOY, [f"root={tmp_path}", *LISTED, *sets])
    found = preflight(Engine(config), ("caption", "synthesize", "segment", "augment", "encode"))
    assert [line[: len(start)] for line, start in zip(found, problems, strict=True)] == problems
    assert all("'models/toy/checkpoints/stable-diffusion' needs multiples of 16; the nearest" in line for line in found)
    assert plan(config)["missing"] == found


def test_squares_beside_other_shapes_must_have_the_size_of_augment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"augment\.size: 32 would make the \[64, 64\] pictures of synthesize\.sizes"):
        load_config(TOY, [*LISTED, "augment.size=32"])
    load_config(TOY, [*LISTED, "augment.size=null"])
