"""All measures on tiny and toy models: what is measured again, what is not, and rows without a value."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import bootpig.stages.engine.loaded
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.models.pretrained.sources import resolve
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import METHODS, drawings
from bootpig.stages.evaluate.gallery import DrawnPictures
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.measures.config import Measured, MeasuresConfig
from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.stages.evaluate.measuring import Measuring
from bootpig.stages.evaluate.results import result_rows
from bootpig.stages.evaluate.scoring import Scores
from bootpig.stages.evaluate.subjects import read_subjects
from bootpig.stages.segment.stage import SegmentConfig
from tests.models.tiny import save_siglip
from tests.stages.evaluate.world import engine, evaluate_config, make_world

TOY = FOLDER.parent / "checkpoints"
SEGMENT = {
    "detector": str(TOY / "owlvit"),
    "sam": str(TOY / "sam" / "sam_vit_toy.safetensors"),
    "sam_type": "vit_toy",
    "device": "cpu",
}
ALL = {"metrics": tuple(MEASURES), "images_per_prompt": 2, "steps": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_world(tmp_path_factory.mktemp("world"), 2)
    save_siglip(folder / "siglip")
    yield folder
    bootpig.stages.engine.loaded.release()


def everything(world: Path) -> dict[str, Any]:
    models = {"dinov2": str(world / "dino"), "siglip": str(world / "siglip"), "segment": SegmentConfig(**SEGMENT)}
    return {**ALL, **models}


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A store with an evaluation by DINO alone, and the result of all measures in another."""
    root = tmp_path_factory.mktemp("roots")
    work = engine(world, root / "whole", **everything(world))
    assert work.run_reduce("evaluate").state == "done"
    return root, result(work)


def result(work: Engine) -> dict[str, bytes]:
    published = work.survey("evaluate").result
    assert published is not None
    return {name: work.root.read(f"{published.path}/{name}") for name in published.files}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures are drawn, and embedded by CLIP and DINO, from now on."""
    counts = {"drawn": 0, "clip": 0, "dino": 0}

    def count(kind: type, name: str, what: str, amount: Any) -> None:
        real = getattr(kind, name)

        def call(self: Any, *args: Any, **options: Any) -> Any:
            counts[what] += amount(args, options)
            return real(self, *args, **options)

        monkeypatch.setattr(kind, name, call)

    count(BootPIGPipeline, "__call__", "drawn", lambda args, options: len(options["prompt"]))
    count(ClipEmbedder, "images", "clip", lambda args, options: len(args[0]))
    count(DinoEmbedder, "images", "dino", lambda args, options: len(args[0]))
    return counts


def test_all_measures_have_a_value_or_a_reason_for_each_picture(finished):
    files = finished[1]
    metrics = json.loads(files["metrics.json"])
    table = pq.read_table(pa_file(files["scores.parquet"])).to_pydict()
    assert list(metrics["methods"]["bootpig"]) == list(MEASURES)
    count = metrics["images"] * len(METHODS)
    for name in MEASURES:
        reasons = table.get(f"{name}_reason", [None] * count)
        assert len(table[name]) == len(reasons) == count
        assert all((value is None) == bool(reason) for value, reason in zip(table[name], reasons, strict=True)), name
        lost = sum(sum(each.values()) for each in metrics.get("unscored", {}).get(name, {}).values())
        assert lost == sum(value is None for value in table[name])
    assert {"identity", "background"} >= set(metrics.get("unscored", {}))
    real = metrics["methods"]["real"]
    assert real["identity"]["mean"] > 0.5, "the toy segmenter finds toy subjects"
    assert real["background"] is not None
    assert real["copy_paste"] is real["diversity"] is None


def pa_file(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def test_a_new_measure_draws_nothing_and_measures_only_itself(world, finished, counted, tmp_path):
    def made(names: tuple[str, ...], **changes: Any) -> dict[str, bytes]:
        counted.update(drawn=0, clip=0, dino=0)
        work = engine(world, tmp_path, **{**ALL, "metrics": names, **changes})
        assert work.run_reduce("evaluate").state == "done"
        return result(work)

    first = made(("clip_t", "clip_i"))
    assert counted["drawn"] and counted["clip"] and not counted["dino"]
    second = made(("clip_t", "dino", "copy_paste", "diversity"))
    assert counted["dino"] and not counted["drawn"] and not counted["clip"]
    assert {n: d for n, d in first.items() if "images/" in n} == {n: d for n, d in second.items() if "images/" in n}
    last = made(("clip_i", "dino", "diversity"), batch_size=3)
    assert counted == {"drawn": 0, "clip": 0, "dino": 0}, "not even with another batch size"
    whole = pq.read_table(pa_file(finished[1]["scores.parquet"]))
    for files, names in (
        (second, ("clip_t", "dino", "copy_paste", "diversity")),
        (last, ("clip_i", "dino", "diversity")),
    ):
        table = pq.read_table(pa_file(files["scores.parquet"]))
        metrics, expected = (json.loads(each["metrics.json"])["methods"] for each in (files, finished[1]))
        for name in names:
            assert table.column(name).equals(whole.column(name)), f"{name}: bit by bit"
            assert all(values[name] == expected[method][name] for method, values in metrics.items())


@pytest.mark.parametrize("damage", ["altered", "lost", "other seed", "forced", "no facts"])
def test_what_does_not_fit_is_made_again(world, counted, tmp_path, damage):
    few = {"steps": 1, "images_per_prompt": 1}
    work = engine(world, tmp_path, metrics=("dino",), **few)
    assert work.run_reduce("evaluate").state == "done"
    drawn, embedded = counted["drawn"], counted["dino"]
    published = work.survey("evaluate").result
    assert work.root.local is not None and published is not None
    folder = work.root.local / published.path
    picture = next((folder / "images" / "bootpig").iterdir())
    if damage == "altered":
        Image.new("RGB", (64, 64)).save(picture)
    if damage == "lost":
        picture.unlink()
    if damage == "no facts":
        (folder / "measures.json").unlink()
    counted.update(drawn=0, dino=0)
    work = engine(world, tmp_path, metrics=("dino", "clip_t"), **few, seed=int(damage == "other seed"))
    assert work.run_reduce("evaluate", force=damage == "forced").state == "done"
    # of an altered or lost picture, only the batch is drawn again: the others are found one by one
    assert counted["drawn"] == {"no facts": 0, "altered": drawn // 4, "lost": drawn // 4}.get(damage, drawn)
    assert counted["dino"] == embedded


def test_a_stopped_measuring_goes_on(world, counted, tmp_path, monkeypatch):
    few = {"steps": 1, "images_per_prompt": 1, "metrics": ("clip_t", "dino")}
    with monkeypatch.context() as patch:
        patch.setattr(DinoEmbedder, "images", lambda *_: (_ for _ in ()).throw(RuntimeError("the power went")))
        assert engine(world, tmp_path, **few).run_reduce("evaluate").state == "failed"
    counted.update(drawn=0, clip=0)
    assert engine(world, tmp_path, **few).run_reduce("evaluate").state == "done"
    assert counted["drawn"] == 0 and counted["clip"] == 2 * 5, "of real pictures alone"
    assert counted["dino"] > 2 * 5


class Store:
    """Pieces in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        self.data[name] = data

    def get(self, name: str) -> bytes | None:
        return self.data.get(name)


class Counter:
    """In place of the store that ranks share."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, key: str, amount: int) -> int:
        self.numbers[key] = self.numbers.get(key, 0) + amount
        return self.numbers[key]


def test_real_pictures_of_the_subject_have_its_identity_for_any_number_of_ranks(world, tmp_path):
    subjects = read_subjects(FOLDER, (), 1)[:2]
    rows = drawings(subjects, 2, seed=0)
    measured = Measured(evaluate_config(world, **everything(world)), "evaluate")
    sources = {**measured.segmenters()}
    sources |= {name: lookup() for name, lookup in measured.lookups({}).items()}
    sources |= {name: resolve(f"evaluate.{name}", str(world / name)) for name in ("clip", "dino")}
    judges = Judges(sources, measured.models)
    own = [[path.read_bytes() for path in (*subject.references, *subject.real)] for subject in subjects]
    found = []
    for count in (1, 2):
        store, meeting = Store(), Counter()
        for rank in reversed(range(count)):
            share = Share(rank, count, meeting)
            drawn = DrawnPictures("bootpig", tmp_path / f"{count}-{rank}", rows, 3, None, share)
            for place, row in enumerate(rows):  # the subject itself, or for the last row the other one
                number = subjects.index(row.subject) if place < len(rows) - 1 else 0
                drawn.files.paths[place].write_bytes(own[number][place % 6])
            scores = Scores(subjects, rows, ["bootpig"], {}, measured.config.metrics)
            scratch = tmp_path / f"masks-{count}-{rank}"
            work = Measuring(
                measured,
                judges,
                {"bootpig": drawn},
                scores,
                share,
                lambda store=store: store,
                torch.device("cpu"),
                scratch,
            )
            work.measure(measured.config.metrics)
        found.append(scores)
    one, two = (scores.table() for scores in found)
    assert one.equals(two), "bit by bit"
    identity = one.column("identity").to_pylist()
    assert None not in identity and identity[-1] < min(identity[:-1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": ("dinov",)}, r"there is no metric 'dinov'; did you mean 'dino"),
        ({"metrics": ("CLIP-T", "lpips")}, r"there is no metric 'CLIP-T'; did you mean 'clip_t'"),
        ({"metrics": ("fid",)}, r"there is no metric 'fid'; use some of clip_t, clip_i"),
        ({"metrics": ()}, "at least 1"),
        ({"metrics": ("dinov2",)}, r"metrics: dinov2 → no model; set dinov2, such as"),
        ({"metrics": ("siglip_i", "siglip_t")}, r"metrics: siglip_t, siglip_i → no model; set siglip, such as"),
        ({"metrics": ("diversity",), "images_per_prompt": 1}, r"needs images_per_prompt of at least 2, not 1"),
        ({"metrics": ("dino",), "siglip_revision": 3}, "string"),
    ],
)
def test_settings_that_cannot_be_measured(world, settings, says):
    with pytest.raises(ValidationError, match=says):
        evaluate_config(world, **settings)


def test_the_order_and_repeats_of_metrics_mean_nothing(world):
    one, other = (evaluate_config(world, metrics=names) for names in (["dino", "clip_t", "dino"], ["clip_t", "dino"]))
    assert one == other and one.metrics == ("clip_t", "dino")
    assert evaluate_config(world, metrics="dino").metrics == ("dino",)


def test_defaults_are_as_before(world):
    hashed = evaluate_config(world).hashed()
    assert {"metrics", "segment", "dinov2", "siglip"}.isdisjoint(hashed)
    assert MeasuresConfig.model_fields["metrics"].default == ("clip_t", "clip_i", "dino")
    assert Measured(evaluate_config(world), "evaluate").models == ("clip", "dino")


def test_a_model_that_no_metric_uses_is_a_warning(world):
    config = evaluate_config(world, siglip=str(world / "siglip"), dinov2=str(world / "dino"), metrics=("identity",))
    (line,) = Measured(config, "evaluate").warnings()
    assert line.startswith("evaluate.siglip: ") and "evaluate.metrics" in line


def test_a_missing_model_is_one_line(world):
    config = evaluate_config(world, siglip="some/where/siglip", metrics=("siglip_t",))
    (lookup,) = Measured(config, "evaluate").lookups({}).values()
    with pytest.raises(ValueError, match=r"evaluate\.siglip: ") as caught:
        lookup()
    assert "\n" not in str(caught.value)


def test_an_evaluation_without_dino_has_no_gap(world):
    subjects = read_subjects(world / "subjects", (), 1)
    rows = drawings(subjects, 1, 0)
    scores = Scores(subjects, rows, list(METHODS), {"text_only": {0}}, ["clip_t"])
    for method in METHODS:
        lost = ["not_finite" if (method, row) == ("text_only", 0) else "" for row in range(len(rows))]
        scores.keep("clip_t", method, np.array([np.nan if reason else 0.5 for reason in lost]), lost)
    scores.real["clip_t"] = [None] * len(subjects)
    metrics = scores.metrics(0)
    assert metrics["gap_closed_dino"] is None and "unscored" not in metrics
    assert metrics["methods"]["real"]["clip_t"] is None and metrics["methods"]["text_only"]["clip_t"]["mean"] == 0.5


def test_a_subject_without_a_value_is_left_out_of_the_mean(world):
    subjects = read_subjects(world / "subjects", (), 1)
    rows = drawings(subjects, 1, 0)
    scores = Scores(subjects, rows, ["bootpig"], {}, ["identity"])
    first = [row.subject is subjects[0] for row in rows]
    reasons = ["" if own else "no_detection" for own in first]
    scores.keep("identity", "bootpig", np.where(first, 0.25, np.nan), reasons)
    scores.real["identity"] = [0.5, None]
    metrics = scores.metrics(0)
    assert metrics["methods"]["bootpig"]["identity"]["mean"] == 0.25
    assert metrics["methods"]["real"]["identity"]["mean"] == 0.5
    assert metrics["unscored"] == {"identity": {"bootpig": {"no_detection": len(rows) - sum(first)}}}
    row = result_rows(metrics)[0]
    assert row.cells[0].counted == f"{sum(first)} of {len(rows)}"
    table = scores.table().to_pydict()
    assert table["identity_reason"] == [reason or None for reason in reasons]
