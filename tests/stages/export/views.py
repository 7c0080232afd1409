"""A data set with views: a double of the view stage that keeps none, one or two of two views."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.export.records import DataSet
from bootpig.stages.view.config import ViewConfig
from bootpig.stages.view.stage import View
from tests.stages.doubles import Cutter, Painter, _Double, config

SCENES = ("on a beach", "in a library")


class Sparse(Painter):
    """Its score is missing in most rows."""

    columns = pa.schema([*Painter.columns, ("rare", pa.float32())])

    def make(self, sample: Sample) -> Sample:
        made = super().make(sample)
        made.columns["rare"] = 0.5 if int(sample.id, 16) % 7 == 0 else None
        return made


class Views(_Double):
    name, upstream, config_class = "view", ("segment",), ViewConfig
    columns = View.columns

    def make(self, sample: Sample) -> Sample:
        kept = kept_views(sample.id)
        pixels = np.asarray(Image.open(io.BytesIO(sample.files["png"])))
        files = {"png": sample.files["png"], "mask.json": sample.files["mask.json"]}
        for place, number in enumerate(kept):
            view = io.BytesIO()
            Image.fromarray(np.roll(pixels, number + 1, 1)).save(view, "PNG")
            files |= {f"view{place}.png": view.getvalue(), f"view{place}.mask.json": sample.files["mask.json"]}
        dropped = ["" if number in kept else "other_subject" for number in range(2)]
        identity = [0.75 if number in kept else None for number in range(2)]
        return sample.ok(files=files, views=len(kept), scenes=list(SCENES), identity=identity, dropped=dropped)


def kept_views(key: str) -> list[int]:
    return [[], [0], [1], [0, 1]][int(key, 16) // 4 % 4]


def data_with_views(root: Path, count: int = 30) -> tuple[Engine, DataSet]:
    """The doubles must be in the registry."""
    settings = config(
        root,
        caption__count=count,
        caption__other_scenes=2,
        unit_size=10,
        view={"count": 2, "model": "none"},
        augment={"references_from": "both"},
    )
    engine = Engine(settings)
    for stage in engine.graph.maps():
        for unit in engine.units():
            report = engine.run_unit(stage, unit)
            assert report.state == "done", report
    surveys = engine.survey_all(engine.graph.maps())
    return engine, DataSet.of_surveys(engine.root, engine.config, surveys)


DOUBLES = (Sparse, Cutter, Views)
