"""Training that draws and judges validation subjects: equal to evaluate, harmless, and a guide to the best weights."""

from __future__ import annotations

import shutil
import types
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bootpig.models.pretrained.sources import resolve
from bootpig.models.toy.subject_folder import FOLDER, VALIDATION, write_folder
from bootpig.stages.caption.stage import Caption
from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import missing_models
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.train import evaluation
from bootpig.stages.train.best import Best, Point
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.evaluation import Evaluation
from bootpig.stages.train.stage import Train
from bootpig.stages.train.start import load_pipeline
from bootpig.stages.train.subjects import EvaluationConfig, ValidationSubjects, shared_problems
from bootpig.storage.jsonio import parse_json
from tests.models.tiny import save_clip, save_vit
from tests.stages import doubles
from tests.stages.evaluate.world import Trained, evaluate_config
from tests.stages.train.training_data import FolderCheckpoints, curve, save_base, write_units


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, the judges `clip` and `dino`, and `subjects`."""
    folder = tmp_path_factory.mktemp("world")
    save_base(folder / "base")
    save_clip(folder / "clip")
    save_vit(folder / "dino")
    write_folder(folder / "subjects", 2)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def recipe(world: Path, settings: dict[str, Any] | None = None, **values: Any) -> TrainConfig:
    drawn = {name: str(world / name) for name in ("clip", "dino", "subjects")}
    small = {
        "steps": 4,
        "global_batch_size": 4,
        "learning_rate_reference": 1e-2,
        "learning_rate_base": 1e-2,
        "log_every": 100,
        "num_workers": 0,
        "mixed_precision": "no",
        "evaluate_every": 2,
        "evaluation": {**drawn, "count": 2, "steps": 2, **(settings or {})},
    }
    return TrainConfig(model=str(world / "base"), **{**small, **values})


def train(
    config: TrainConfig, data: ReduceInput, folder: Path, checkpoints: Path | None = None, stop: int | None = None
) -> dict[str, bytes]:
    """Train into `folder` and return the files of the exported model. `stop`: a kill after so many updates."""
    folder.mkdir()

    def progress(done: int, total: int, text: str) -> None:
        if done == stop:
            raise Killed

    Train(config, 0).run(data, folder, FolderCheckpoints(checkpoints or folder / "none"), progress)
    model = folder / "model"
    return {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def plain(world: Path, data: ReduceInput, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The model of a training that draws nothing."""
    return train(recipe(world, evaluate_every=None), data, tmp_path_factory.mktemp("plain") / "out")


def kept(folder: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = parse_json((folder / "model/bootpig.json").read_text()).get("kept")
    return found


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[int, Point]:
    """Set the scores of a step in place of what the judges say. Text only has a CLIP-T of 0.3."""
    found: dict[int, Point] = {}
    real = Evaluation._point

    def point(self: Evaluation, done: int, *, with_reference: bool) -> Point | None:
        drawn = real(self, done, with_reference=with_reference)
        assert drawn is not None
        return found.get(done, Point(done, 0.1, 0.3)) if with_reference else Point(0, 0.1, 0.3)

    monkeypatch.setattr(Evaluation, "_point", point)
    return found


def test_the_scores_are_those_of_evaluate_and_change_nothing(
    world: Path, data: ReduceInput, plain: dict[str, bytes], tmp_path: Path
) -> None:
    config = recipe(world, evaluate_every=4)
    assert train(config, data, tmp_path / "watched") == plain
    first, last = curve(tmp_path / "watched")
    (tmp_path / "result").mkdir()
    metrics = Evaluate(evaluate_config(world), 0).measure(
        tmp_path / "watched/model", tmp_path / "result", lambda *_: None
    )
    means = {method: {name: v["mean"] for name, v in row.items()} for method, row in metrics["methods"].items()}
    for names, line, method in (
        ("validation", first, "untrained"),
        ("text_only", first, "text_only"),
        ("validation", last, "bootpig"),
    ):
        for metric in ("dino", "clip_t"):
            assert line[f"{names}_{metric}"] == pytest.approx(means[method][metric], abs=1e-4), (method, metric)
    assert (first["step"], last["step"]) == (0, 4)
    assert first["validation_dino"] != last["validation_dino"]


@pytest.mark.parametrize(
    "more",
    [{"mixed_precision": "no"}, {"mixed_precision": "bf16", "method": "lora", "lora_rank": 2, "ema_decay": 0.5}],
)
def test_the_best_weights_are_kept_also_over_a_kill(
    world: Path, data: ReduceInput, tmp_path: Path, scored: dict[int, Point], more: dict[str, Any]
) -> None:
    scored |= {1: Point(1, 0.5, 0.31), 2: Point(2, 0.7, 0.3), 3: Point(3, 0.9, 0.2)}
    drawn = {"count": 1, "steps": 1}
    config = recipe(world, drawn, steps=3, keep="best", evaluate_every=1, checkpoint_every=2, **more)
    straight = train(config, data, tmp_path / "straight")
    with pytest.raises(Killed):
        train(config, data, tmp_path / "killed", tmp_path / "checkpoints", stop=3)
    assert train(config, data, tmp_path / "resumed", tmp_path / "checkpoints") == straight
    assert curve(tmp_path / "resumed") == curve(tmp_path / "straight")
    assert [line["step"] for line in curve(tmp_path / "straight")] == [0, 1, 2, 3]
    assert kept(tmp_path / "straight") == {**asdict(scored[2]), "text_only_clip_t": 0.3, "fidelity": 0.98}
    assert "weights after update 2:" in straight["README.md"].decode()
    two = train(recipe(world, steps=2, evaluate_every=None, **more), data, tmp_path / "two")
    weights = [name for name in two if name.endswith(".safetensors")]
    assert weights and all(straight[name] == two[name] for name in weights)
    # a checkpoint without the best weights is no checkpoint
    (tmp_path / "checkpoints/checkpoint-00002/best.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"^train: checkpoint checkpoint-00002 is not readable"):
        train(config, data, tmp_path / "damaged", tmp_path / "checkpoints")


def test_a_failure_is_only_a_warning(
    world: Path,
    data: ReduceInput,
    plain: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def draw(pipeline: Any, *_: Any) -> Any:
        pipeline.scheduler.betas = None
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(evaluation, "draw", draw)
    monkeypatch.setattr(evaluation, "Judges", lambda sources, names: sources)
    config = recipe(world, keep="best", evaluate_every=3)
    failed = train(config, data, tmp_path / "failed")
    assert caplog.text.count("train.evaluation: no scores at step") == 4  # 0 twice, 3, 4
    assert "OutOfMemoryError: no room" in caplog.text
    assert "train.keep: no point has scores" in caplog.text
    assert kept(tmp_path / "failed") is None and not curve(tmp_path / "failed")
    weights = [name for name in plain if name.endswith(".safetensors")]
    assert all(failed[name] == plain[name] for name in weights)


def test_judges_do_not_stay_on_the_device() -> None:
    places: list[str] = []
    model = types.SimpleNamespace(to=lambda device: places.append(device.type), cpu=lambda: places.append("cpu"))
    judge: Any = types.SimpleNamespace(model=model)
    judges = Judges({}, ())
    judges.encoders = {"clip": judge, "dino": judge, "other": None}
    with suppress(RuntimeError), judges.on(torch.device("meta"), "clip", "dino"):
        raise RuntimeError
    assert places == ["meta", "meta", "cpu", "cpu"]


def test_ranks_share_the_pictures_and_a_failure(
    world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = resolve("train.model", str(world / "base"))
    pipeline = load_pipeline({"model": base})

    def rank(index: int, ranks: int) -> Evaluation:
        state: Any = types.SimpleNamespace(is_main_process=index == 0, process_index=index, num_processes=ranks)
        config = recipe(world, {"batch_size": 1})
        judges = Train(config, 0)._judges()
        return Evaluation(config, judges, base, pipeline, state, weights=dict, averaged=nullcontext)

    alone, first, second = rank(0, 1), rank(0, 2), rank(1, 2)
    whole, odd, even = (each._share(True) for each in (alone, first, second))
    assert not isinstance(whole, str) and not isinstance(odd, str) and not isinstance(even, str)
    assert (len(whole), len(odd), len(even)) == (4, 2, 2)
    assert first._in_order([odd, even]) == whole
    monkeypatch.setattr(evaluation, "gather_object", lambda own: [*own, "OutOfMemoryError: no room"])
    assert first._point(2, with_reference=True) is None
    assert second._point(2, with_reference=True) is None
    assert caplog.text.count("no scores at step 2 (OutOfMemoryError: no room)") == 1


def test_the_rule() -> None:
    def best(*points: Point, text_only: Point | None) -> int:
        found = Best()
        found.text_only = text_only
        for point in points:
            found.offer(point, dict)
        assert found.point is not None
        return found.point.step

    text = Point(0, 0.2, 0.3)
    faithful, alike, both = Point(1, 0.5, 0.31), Point(2, 0.9, 0.25), Point(3, 0.6, 0.295)
    assert best(faithful, alike, text_only=text) == 1
    assert best(faithful, alike, both, text_only=text) == 3
    assert best(alike, both, faithful, text_only=text) == 3
    assert best(alike, Point(4, 0.4, 0.26), text_only=text) == 4  # none is good: the nearest
    assert best(faithful, alike, both, text_only=None) == 2
    assert best(both, Point(5, both.dino, both.clip_t), text_only=text) == 3
    assert best(Point(1, 0.5, -0.11), Point(2, 0.6, -0.101), text_only=Point(0, 0, -0.1)) == 2


def test_what_is_hashed(world: Path, tmp_path: Path) -> None:
    plain, watched = recipe(world, evaluate_every=None, evaluation=None), recipe(world)
    assert plain.hashed() == watched.hashed()
    assert Train(plain, 0).models().keys() == Train(watched, 0).models().keys() == {"model"}
    judging = {"evaluation.clip", "evaluation.dino", "evaluation.subjects"}
    assert Train(watched, 0).unhashed_models().keys() == judging and not Train(plain, 0).unhashed_models()
    best = Train(recipe(world, keep="best"), 0)
    assert best.models().keys() == {"model", *judging} and not best.unhashed_models()
    hashed = best.config.hashed()
    assert (hashed["keep"], hashed["evaluate_every"], hashed["evaluation"]["steps"]) == ("best", 2, 2)
    assert "batch_size" not in hashed["evaluation"]
    copy = shutil.copytree(world / "subjects", tmp_path / "subjects")
    other = Train(recipe(world, {"subjects": str(copy)}, keep="best"), 0)
    assert other.models()["evaluation.subjects"].as_json() == best.models()["evaluation.subjects"].as_json()
    (copy / "mug-0/00.png").write_bytes((copy / "mug-0/01.png").read_bytes())
    assert other.models()["evaluation.subjects"].as_json() != best.models()["evaluation.subjects"].as_json()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"keep": "best", "evaluate_every": None}, "keep: best needs .* set evaluate_every"),
        ({"evaluation": None}, r"evaluate_every: has no subjects .* set evaluation\.subjects"),
        ({"evaluate_every": 5}, "evaluate_every: 5 is more than steps, 4"),
        ({"shard": "fsdp"}, "evaluate_every: cannot draw with sharded weights"),
        ({"evaluate_every": 0}, "greater than or equal to 1"),
        ({"keep": "worst"}, "'last' or 'best'"),
    ],
)
def test_settings_that_do_not_go_together(world: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        recipe(world, **values)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"subjects": "some/where"}, "subjects: there is no folder 'some/where'"),
        ({"count": 3}, r"count: 3 is more than the 2 subjects of .*; lower it"),
        ({"clip": "some/where/else"}, "clip: 'some/where/else'"),
        ({"references": 5}, "lower train.evaluation.references"),
    ],
)
def test_bad_input_is_found_before_any_work(world: Path, settings: dict[str, Any], says: str) -> None:
    for keep in ("last", "best"):
        stage = Train(recipe(world, settings, keep=keep), 0)
        with pytest.raises(ValueError, match=rf"^train\.evaluation\..*{says}|^train\.evaluation\.{says}") as caught:
            {**stage.models(), **stage.unhashed_models()}
        assert "\n" not in str(caught.value)


def test_a_judge_of_another_kind_and_a_damaged_picture_are_named(world: Path, tmp_path: Path) -> None:
    (problem,) = Train(recipe(world, {"clip": str(world / "dino")}), 0).check_models()
    assert problem.startswith("train.evaluation.clip: ") and "CLIPModel" in problem
    copy = shutil.copytree(world / "subjects", tmp_path / "subjects")
    (copy / "mug-0/03.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^train\.evaluation\.subjects: .*03\.png' → is empty"):
        Train(recipe(world, {"subjects": str(copy)}), 0).check_ready()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda own, other: own.rename(other), "is the folder of evaluate.subjects"),
        (lambda own, other: other.symlink_to(own), "is the folder of evaluate.subjects"),
        (lambda own, other: shutil.copytree(own / "vase-0", other / "another"), "such as those of vase-0;"),
        (lambda own, other: shutil.copytree(own, other), "such as those of mug-0 and 1 more;"),
        (lambda own, other: write_folder(other, 2, seed=1), None),
        (lambda own, other: None, None),
    ],
)
def test_subjects_of_evaluate_are_refused(
    world: Path, tmp_path: Path, change: Callable[[Path, Path], object], says: str | None
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    shutil.copytree(world / "subjects", own)
    change(own, other)
    found = shared_problems(EvaluationConfig(subjects=str(own if own.exists() else other)), str(other))
    assert len(found) == (says is not None)
    assert says is None or (says in found[0] and found[0].startswith("train.evaluation.subjects: "))


def test_the_run_asks_before_any_work(world: Path, tmp_path: Path) -> None:
    values = recipe(world).model_dump()
    config = doubles.config(tmp_path, train={**values, "model": "none"}, evaluate__subjects=str(world / "subjects"))
    found = missing_models(Engine(config, {"caption": Caption, "train": Trained}), ["caption", "train"])
    assert found["caption"] == []
    (problem,) = found["train"]
    assert "is the folder of evaluate.subjects" in problem
    off = config.model_copy(update={"train": config.train.model_copy(update={"evaluate_every": None})})
    assert off.conflicts("train") == []
    pinned = config.pinned({"train": {"evaluation.clip_revision": "a", "evaluation.dino_revision": "b"}}).train
    assert pinned.evaluation is not None
    assert (pinned.evaluation.clip_revision, pinned.evaluation.dino_revision) == ("a", "b")
    assert pinned.evaluation.steps == 2


def test_shipped_subjects_are_spread_over_the_kinds() -> None:
    config = EvaluationConfig(subjects=str(VALIDATION), count=6)
    assert len({subject.object for subject in ValidationSubjects(config).subjects()}) == 6
    assert shared_problems(config, str(FOLDER)) == []
