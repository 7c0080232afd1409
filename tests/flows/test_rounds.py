"""Which model draws the views of a run, and the first round that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.rounds import first_round, or_first_round, with_round_before, with_trained_models
from bootpig.flows.runs.gc import garbage
from bootpig.flows.runs.records import StageRecord, latest_run, list_runs, new_run, promote, read_config, read_run
from bootpig.flows.sweep.file import SweepCell, SweepFile
from bootpig.flows.sweep.plan import plan_sweep
from bootpig.flows.sweep.prepared import prepare_sweep
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root

BASE = PROJECT / "models/toy/checkpoints/stable-diffusion"


def config(root: Path, *overrides: str) -> PipelineConfig:
    return load_config(shipped_configs()["toy-views"], [f"root={root}", *overrides])


def publish(root: Path, fingerprint: str, folder: Path) -> str:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "bootpig.json").write_text('{"base": "x"}')
    return publish_folder(Root(str(root)), f"train/{fingerprint}/result", folder).path


def test_the_first_round_is_the_same_without_views(tmp_path: Path) -> None:
    asked = config(tmp_path)
    stages = graph_of(asked).stages
    first = first_round(asked, stages)
    assert first is not None and first.view is None and first.augment.references_from == "cut_out"
    assert graph_of(first).stages.keys() == stages.keys() - {"view"}
    assert first_round(asked, ("caption", "synthesize")) is None, "no view will be drawn"
    assert first_round(config(tmp_path, f"view.model={BASE}"), stages) is None
    assert with_trained_models(asked) == asked, "not made yet"
    fingerprint = Engine(first).survey("train").fingerprint
    path = publish(tmp_path, fingerprint, tmp_path / "made")
    found = with_trained_models(asked).view
    assert found is not None and found.model == str(tmp_path / path / "model")


def test_a_run_latest_or_a_folder(tmp_path: Path) -> None:
    for name in (str(BASE), "owner/editing-pipeline"):
        asked = config(tmp_path, f"view.model={name}")
        assert with_trained_models(asked) == asked
    for name in ("latest", "20261127-000000-toy-00000000"):
        with pytest.raises(InputError, match=r"^view\.\w*"):
            with_trained_models(config(tmp_path, f"view.model={name}"))
    with pytest.raises(InputError, match=r"^view\.model: .*holds no bootpig\.json"):
        with_trained_models(config(tmp_path, f"view.model={tmp_path}"))
    path = publish(tmp_path, "0" * 16, tmp_path / "made")
    record = new_run(Root(str(tmp_path)), config(tmp_path))
    record.stages["train"] = StageRecord(fingerprint="0" * 16)
    record.save(Root(str(tmp_path)))
    found = with_trained_models(config(tmp_path, f"view.model={record.id}"))
    assert found.view is not None and found.view.model == str(tmp_path / path / "model")

    likeness = {"dino": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    metrics = {"methods": {"bootpig": {"dino": {"mean": 0.7, "ci95": [0.6, 0.8]}}}}
    assert with_round_before(metrics, Root(str(tmp_path)), found) == metrics, "that run was not evaluated"
    Root(str(tmp_path)).write(
        f"{record.folder}/metrics.json", b'{"methods": {"bootpig": {"dino": {"mean": 0.5, "ci95": [0.4, 0.6]}}}}'
    )
    both = with_round_before(metrics, Root(str(tmp_path)), found)
    assert both["methods"] == {**metrics["methods"], "round_before": likeness}


def test_the_copy_of_another_machine_is_made_again(tmp_path: Path) -> None:
    path = publish(tmp_path, "0" * 16, tmp_path / "made")
    copied = f"/elsewhere/cache/models/train-{'0' * 16}-result-1/model"
    found = with_trained_models(config(tmp_path, f"view.model={copied}")).view
    assert found is not None and found.model == str(tmp_path / path / "model")
    with pytest.raises(InputError, match=r"^view\.model: .*is no longer in the store"):
        with_trained_models(config(tmp_path, f"view.model={copied.replace('0' * 16, '1' * 16)}"))


def test_the_model_that_training_starts_from_is_found_again_on_another_machine(tmp_path: Path) -> None:
    path = publish(tmp_path, "0" * 16, tmp_path / "made")
    for named in (
        f"/elsewhere/models/train-{'0' * 16}-result-1/model",
        f"/elsewhere/data/train/{'0' * 16}/result-1/model",
    ):
        found = with_trained_models(config(tmp_path, "view.model=owner/editing", f"train.init_from={named}"))
        assert found.train.init_from == str(tmp_path / path / "model")
    here = str(tmp_path / "made")
    for kept in (here, f"/elsewhere/models/train-{'1' * 16}-result-1/model", "/elsewhere/another"):
        asked = config(tmp_path, "view.model=owner/editing", f"train.init_from={kept}")
        assert with_trained_models(asked) == asked, "it is there, or train says that it is not"


def test_a_sweep_of_views_is_prepared_before_its_first_round_exists(tmp_path: Path) -> None:
    cells = (
        SweepCell(name="views", set={}),
        SweepCell(name="none", set={"view": None, "augment.references_from": "cut_out"}),
    )
    asked = SweepFile(name="views", base="toy-views", root=str(tmp_path / "store"), cells=cells)
    ready = prepare_sweep(asked)
    assert [(run.of.cell.name, run.engine is None, run.complete) for run in ready.runs] == [
        ("views", True, None),  # the flow makes the first round, and then prepares this run
        ("none", False, None),
    ]
    assert plan_sweep(asked)["missing"] == []
    wrong = SweepCell(name="wrong", set={"view.steps": 2, "evaluate.subjects": str(tmp_path / "none")})
    with pytest.raises(InputError, match=r"evaluate\.subjects: .*none"):
        prepare_sweep(asked.model_copy(update={"cells": (*cells, wrong)}))


def test_latest_is_a_first_round_only_until_there_is_a_version(tmp_path: Path) -> None:
    asked = config(tmp_path, "view.model=latest")
    begun = or_first_round(asked)
    assert begun.view is not None and begun.view.model is None
    root = Root(str(tmp_path))
    record = new_run(root, asked)
    record.stages["train"] = StageRecord(fingerprint="0" * 16)
    record.state = "done"
    promote(root, record)
    assert or_first_round(asked) == begun, "a version without a model"
    publish(tmp_path, "0" * 16, tmp_path / "made")
    assert or_first_round(asked) == asked


def test_latest_of_data_alone_is_the_model_that_drew_its_views(tmp_path: Path) -> None:
    asked, root = config(tmp_path, "view.model=latest"), Root(str(tmp_path))
    path = publish(tmp_path, "0" * 16, tmp_path / "made")
    # the record may name the copy of another machine
    for drew in (str(tmp_path / path / "model"), f"/elsewhere/models/train-{'0' * 16}-result-1/model"):
        night = new_run(root, config(tmp_path, f"view.model={drew}"), until="encode")
        night.state = "done"
        promote(root, night)
        assert or_first_round(asked) == asked
        found = with_trained_models(asked).view
        assert found is not None and found.model == str(tmp_path / path / "model")
    with pytest.raises(InputError, match=r"^view\.model: .* has no trained model"):
        with_trained_models(config(tmp_path, f"view.model={night.id}"))
    root.remove("train", recursive=True)
    begun = or_first_round(asked).view
    assert begun is not None and begun.model is None, "the model is gone, so the next night makes one"


def nights(root: Path, subjects: Path) -> PipelineConfig:
    """A schedule whose views are drawn by `latest`."""
    small = ["caption.count=8", "unit_size=8", "synthesize.steps=2", "segment.min_score=0", "segment.min_sam_iou=0"]
    small += ["segment.detection_threshold=0", "min_yield=0", "train.steps=2", "train.warmup_steps=0", "threads=1"]
    small += ["train.global_batch_size=2", "train.sample_every=0", "evaluate.steps=2", f"evaluate.subjects={subjects}"]
    return config(root, "view.model=latest", "view.steps=2", "view.min_identity=-1", *small)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_each_night_of_data_alone_draws_with_the_model_of_the_first(tmp_path: Path, subjects: Path) -> None:
    from bootpig.flows.pipeline import regenerate

    asked, root = nights(tmp_path, subjects), Root(str(tmp_path))
    for night in range(3):
        state = regenerate(asked, train=False, keep=1 if night else None, return_state=True)
        assert state.is_completed(), state.message
        record = read_run(root, latest_run(root))
        assert record.stages["view"].rows["ok"] > 0 and "train" not in record.stages
        (fingerprint,) = root.folders("train")
        assert fingerprint in str(read_config(root, record).view)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_each_version_learns_from_the_one_before(tmp_path: Path, subjects: Path) -> None:
    from bootpig.flows.pipeline import regenerate

    asked, root = nights(tmp_path, subjects), Root(str(tmp_path))
    assert regenerate(asked, return_state=True).is_completed()
    first, second = sorted(list_runs(root), key=lambda record: record.started)
    assert "view" not in first.stages and first.promoted is None, "only its model is wanted"
    assert second.promoted is not None and second.stages["view"].rows["ok"] > 0
    assert first.stages["train"].fingerprint in str(read_config(root, second).view)
    assert regenerate(asked, keep=1, return_state=True).is_completed()
    third = read_run(root, latest_run(root))
    assert second.stages["train"].fingerprint in str(read_config(root, third).view)
    # its record still names the model that drew its views, whose version is gone
    assert second.id not in [record.id for record in list_runs(root)]
    assert (tmp_path / "train" / second.stages["train"].fingerprint).is_dir()
    assert garbage(root, keep=1).folders == []
    assert "round before" in (tmp_path / third.folder / "report.html").read_text()
