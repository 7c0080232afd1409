"""The view stage: draws each subject again in other scenes, cuts the views out and compares them with the subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from bootpig.models.painters.costs import step_tflop
from bootpig.models.painters.editing import editing_problem
from bootpig.models.pipelines.base_check import base_problems
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import judge_problems, pipeline_problems, trained_problems
from bootpig.models.pretrained.source import JUDGE, PIPELINE, TRANSFORMER, ModelSource, loading, local_path
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.models.pretrained.trained import TRAINED, base_of
from bootpig.stages.caption.other_scenes import in_scene
from bootpig.stages.engine.contract import InputError, MapStage, Sample, sample_seed
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.pictures import PNG_BYTES, decode_cut_out, encode_png, on_all_cores
from bootpig.stages.segment.stage import Segment
from bootpig.stages.view.config import ViewConfig

if TYPE_CHECKING:
    from bootpig.models.pretrained.embedders import DinoEmbedder
    from bootpig.stages.view.painters import Order, ViewPainter

NO_FIRST_ROUND = "view.model: null → the first round, without views, is not made yet"
"""The beginning of a message."""

_SIDE = 224
"""Side in pixels at which subjects are compared."""


class View(MapStage):
    """Adds `<id>.view0.png` and `<id>.view0.mask.json` … to the target and its mask, which stay as they are."""

    name = "view"
    upstream = ("segment",)
    config_class = ViewConfig
    config: ViewConfig
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("views", pa.int32()),  # that were kept
            ("scenes", pa.list_(pa.string())),  # of all views
            ("identity", pa.list_(pa.float32())),  # of all views; null where none was cut out
            ("dropped", pa.list_(pa.string())),  # the reason for each view, empty where it was kept
        ]
    )
    reasons: ClassVar[Mapping[str, str]] = {"no_view": "no view of the subject was kept, and views are required"}
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"no_view": ("required", "min_identity")}

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        lookups = {
            "model": self._model,
            "dino": lambda: resolve("view.dino", c.dino, c.dino_revision, TRANSFORMER, JUDGE),
        }
        found = resolve_all(self.name, lookups)
        if _is_trained(found["model"]):
            found["base"] = base_of("view.model", Path(found["model"].path))
        return found | {f"segment.{name}": source for name, source in self._segment().models().items()}

    def check_models(self) -> list[str]:
        sources = self.models()
        model = sources["model"]
        problems = judge_problems(sources["dino"], "dino")
        if _is_trained(model):
            base = sources["base"]
            problems += trained_problems("view.model", Path(model.path), base)
            problems += pipeline_problems(base) or base_problems(base)
        else:
            problems += pipeline_problems(model) or _editing_problems(model)
        return problems + self._segment().check_models()

    def estimate(self, work: Workload) -> Estimate:
        c, pixels = self.config, work.above.pixels
        drawn = work.samples * c.count
        passes = 3 * sizes.unet_tflop(c.model or "", pixels)  # text, reference and both; the reference is read once
        if sizes.transformer_parameters(c.model or ""):
            passes = 2 * step_tflop(c.model or "", pixels, c.guidance_scale)  # a picture of as many tokens beside it
        cut = self._segment().estimate(Workload(work.units, drawn, work.above))
        return Estimate(
            work.above,
            tflop=drawn * (c.steps * passes + sizes.vae_decode_tflop(c.model or "", pixels)) + cut.tflop,
            stored_bytes=(work.samples + drawn) * PNG_BYTES * pixels,
            assumptions=(sizes.ASSUMPTION, "view: no view is dropped"),
        )

    def setup(self) -> None:
        from bootpig.models.devices import torch_device
        from bootpig.models.pretrained.embedders import DinoEmbedder
        from bootpig.models.pretrained.finite import check_weights
        from bootpig.models.pretrained.snapshots import fetch_folder
        from bootpig.stages.view.painters import BootPIGPainter, EditingPainter

        sources = self.models()
        model = sources["model"]
        self._painter: ViewPainter
        if _is_trained(model):
            self._painter = BootPIGPainter(self.config, sources["base"], Path(model.path))
        else:
            self._painter = EditingPainter(self.config, model)
        with loading("view.dino", self.config.dino):
            self._dino: DinoEmbedder = DinoEmbedder(fetch_folder(sources["dino"]))
            check_weights("view.dino", self.config.dino, self._dino.model)
        self._dino.model.to(torch_device("view.device", self.config.device))
        self._cutter: Segment = self._segment()
        self._cutter.setup()

    def teardown(self) -> None:
        self._cutter.teardown()
        del self._painter, self._dino, self._cutter

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        from bootpig.stages.view.painters import Order

        cut_outs = on_all_cores(lambda sample: decode_cut_out(sample.files), samples)
        orders: list[Order] = []
        owners: list[int] = []
        scenes: list[list[str]] = []
        for place, sample in enumerate(samples):
            scenes.append(list(sample.meta.get("other_scenes", ()))[: self.config.count])
            for number, scene in enumerate(scenes[-1]):
                seed = sample_seed(self.seed, self.name, sample.id, number)
                orders.append(Order(cut_outs[place], self._prompt(sample, scene), seed))
                owners.append(place)
        pictures = self._painter.paint(orders) if orders else []
        views = [
            None
            if picture is None
            else Sample(
                f"{samples[owner].id}-{number}", samples[owner].unit, samples[owner].meta, {"png": encode_png(picture)}
            )
            for number, (owner, picture) in enumerate(zip(owners, pictures, strict=True))
        ]
        drawn = [view for view in views if view is not None]
        cut = iter(self._cutter.process(drawn) if drawn else [])
        judged = [None if view is None else next(cut) for view in views]
        identities = self._identities(cut_outs, owners, judged)
        results = []
        for place, sample in enumerate(samples):
            mine = [k for k, owner in enumerate(owners) if owner == place]
            results.append(
                self._result(sample, scenes[place], [judged[k] for k in mine], [identities[k] for k in mine])
            )
        return results

    def _result(
        self, sample: Sample, scenes: list[str], views: Sequence[Sample | None], identities: Sequence[float | None]
    ) -> Sample:
        files = {"png": sample.files["png"], "mask.json": sample.files["mask.json"]}
        dropped, kept = [], 0
        for view, identity in zip(views, identities, strict=True):
            reason = "not_finite" if view is None else view.reason
            if not reason and (identity is None or not identity >= self.config.min_identity):
                reason = "other_subject"
            dropped.append(reason)
            if not reason and view is not None:
                files |= {f"view{kept}.png": view.files["png"], f"view{kept}.mask.json": view.files["mask.json"]}
                kept += 1
        facts: dict[str, Any] = {"views": kept, "scenes": scenes, "identity": list(identities), "dropped": dropped}
        if self.config.required and not kept:
            return sample.rejected("no_view", **facts)
        return sample.ok(files=files, **facts)

    def _identities(
        self, cut_outs: Sequence[Image.Image], owners: Sequence[int], views: Sequence[Sample | None]
    ) -> list[float | None]:
        """Cosine similarity of each cut-out view with its subject's own cut-out, both on white. None: not cut out."""
        compared = {k: view for k, view in enumerate(views) if view is not None and view.status == "ok"}
        if not compared:
            return [None] * len(views)
        subjects = sorted({owners[k] for k in compared})
        whole = [cut_outs[place] for place in subjects] + [decode_cut_out(view.files) for view in compared.values()]
        from bootpig.models.pipelines.references import prepare_picture

        rows = self._dino.images([prepare_picture(picture, _SIDE) for picture in whole]).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        own = dict(zip(subjects, rows, strict=False))
        found: list[float | None] = [None] * len(views)
        for k, row in zip(compared, rows[len(subjects) :], strict=True):
            found[k] = float(own[owners[k]] @ row)
        return found

    def _prompt(self, sample: Sample, scene: str) -> str:
        caption = in_scene(sample.meta["caption"], scene)
        return self.config.prompt.format(caption=caption, object=sample.meta["object"], scene=scene)

    def _segment(self) -> Segment:
        assert self.config.segment is not None, "PipelineConfig.section fills it in"
        return Segment(self.config.segment, self.seed)

    def _model(self) -> ModelSource:
        c = self.config
        if c.model is None:
            raise InputError(f"{NO_FIRST_ROUND}; run the whole configuration, or give a trained model")
        path = local_path(c.model)
        if path is not None and (path / TRAINED).is_file():
            return resolve("view.model", c.model, c.revision)
        return resolve("view.model", c.model, c.revision, PIPELINE)


def _is_trained(model: ModelSource) -> bool:
    return model.revision is None and (Path(model.path) / TRAINED).is_file()


def _editing_problems(model: ModelSource) -> list[str]:
    """Whether the pipeline's class edits pictures, from its `model_index.json` if that is on this disk."""
    import diffusers

    from bootpig.models.pretrained.snapshots import cached_folder
    from bootpig.models.pretrained.weight_files import DamagedFile, read_json

    folder = cached_folder(model)
    try:
        name = str(read_json(folder / PIPELINE).get("_class_name")) if folder is not None else ""
    except DamagedFile:
        return []
    kind = getattr(diffusers, name, None)
    problem = None if not isinstance(kind, type) else editing_problem(kind)
    return [] if problem is None else [f"view.model: {problem}; use an editing pipeline or a trained BootPIG"]
