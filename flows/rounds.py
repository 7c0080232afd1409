"""The trained models that a run reads: those that draw its views or that training starts from, and the first round."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bootpig.flows.runs.records import latest_run, list_runs, metrics_of, read_config, read_run
from bootpig.flows.runs.trained import model_folder, published_model
from bootpig.models.pretrained.downloads import cache_folder
from bootpig.models.pretrained.source import PIPELINE, local_path
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root

_TRAINED = re.compile(r"train[/-]([0-9a-f]{16})[/-]")
"""In the path of a model that a run of some store has trained: in that store, or in its copy on this machine."""


def first_round(config: PipelineConfig, stages: Iterable[str]) -> PipelineConfig | None:
    """The configuration of the round that makes the model of the views: the same without views.

    None if there are no views, another model is named, or that round is complete. It then has nothing left to make.

    Args:
        stages: those that will run.
    """
    if config.view is None or config.view.model is not None or "view" not in stages:
        return None
    first = without_views(_with_init_from(config))
    return None if Engine(first).survey("evaluate").units == {0: "complete"} else first


def without_views(config: PipelineConfig) -> PipelineConfig:
    """The configuration of a first round."""
    augment = config.augment.model_copy(update={"references_from": "cut_out"})
    return config.model_copy(update={"view": None, "augment": augment})


def or_first_round(config: PipelineConfig) -> PipelineConfig:
    """The configuration with null for `view.model: latest` if no model is `latest` yet, see `_latest_model`.

    So the first night of a schedule makes a first round, and each later one learns from the night before.
    """
    if config.view is None or config.view.model != "latest":
        return config
    if _latest_model(Root(config.root), _scratch()) is not None:
        return config
    return config.model_copy(update={"view": config.view.model_copy(update={"model": None})})


def _scratch() -> Path:
    """Where models of a remote store are copied to."""
    return cache_folder() / "models"


def _latest_model(store: Root, scratch: Path) -> Path | None:
    """The model of the `latest` version. If that is data alone, the model of this store that drew its views.

    So nights that only make data all draw with the model of the first night's first round. None if there is neither.
    """
    try:
        newest = latest_run(store)
    except InputError:
        return None
    record = read_run(store, newest)
    trained = record.stages.get("train")
    if trained is not None and (own := published_model(store, trained.fingerprint, scratch)) is not None:
        return own
    view = read_config(store, record).view
    drew = None if view is None else _TRAINED.search(view.model or "")
    return None if drew is None else published_model(store, drew[1], scratch)


def with_trained_models(config: PipelineConfig) -> PipelineConfig:
    """The configuration with the folders of the trained models that it names: `view.model` and `train.init_from`.

    Raises:
        InputError: a run has no trained model, or `latest` names none.
        StoreError: the root cannot be opened.
    """
    return _with_view_model(_with_init_from(config))


def _with_init_from(config: PipelineConfig) -> PipelineConfig:
    """The configuration with a copy of the model that training starts from, if its folder is on another machine and
    this store has the model. Otherwise the train stage says that there is no such folder."""
    named = config.train.init_from
    trained = None if named is None or local_path(named) is not None else _TRAINED.search(named)
    folder = None if trained is None else published_model(Root(config.root), trained[1], _scratch())
    if folder is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"init_from": str(folder)})})


def _with_view_model(config: PipelineConfig) -> PipelineConfig:
    """The configuration with the folder of the model that draws the views, in place of a run, `latest` or null.

    A folder or the id of an editing pipeline stays as it is. So does null while the first round is not made. A model
    of this store that another machine has copied, as the record of its run says, is copied to this machine.
    """
    view = config.view
    if view is None:
        return config
    store, scratch = Root(config.root), _scratch()
    local = None if view.model is None else local_path(view.model)
    if view.model is None:
        survey = Engine(without_views(config)).survey("train")
        folder = published_model(store, survey.fingerprint, scratch)
    elif local is None and (trained := _TRAINED.search(view.model)):
        folder = published_model(store, trained[1], scratch)
        if folder is None:
            raise InputError(f"view.model: {view.model!r} → that model is no longer in the store; name another")
    elif (local / PIPELINE).is_file() if local is not None else "/" in view.model:
        return config
    else:
        try:
            folder = _latest_model(store, scratch) if local is None and view.model == "latest" else None
            folder = folder or model_folder(view.model if local is None else str(local), config.root, scratch)
        except InputError as error:
            raise InputError(f"view.{error}") from None
    if folder is None:
        return config
    return config.model_copy(update={"view": view.model_copy(update={"model": str(folder)})})


def with_round_before(metrics: Mapping[str, Any], root: Root, config: PipelineConfig) -> Mapping[str, Any]:
    """A run's metrics, beside those of the model that drew its views, if a run of this store has evaluated that one."""
    found = _TRAINED.search(config.view.model or "") if config.view is not None else None
    if found is None:
        return metrics
    for record in reversed(list_runs(root)):
        trained = record.stages.get("train")
        before = metrics_of(root, record) if trained is not None and trained.fingerprint == found[1] else None
        if before is not None and (drawn := before.get("methods", {}).get("bootpig")) is not None:
            return {**metrics, "methods": {**metrics["methods"], "round_before": drawn}}
    return metrics
