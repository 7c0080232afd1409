"""Draws all pictures of an evaluation: with our own methods, then with each rival."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bootpig.models.devices import torch_dtype
from bootpig.models.memory import free_memory
from bootpig.models.painters.loading import set_scheduler
from bootpig.models.pipelines.bases import load_base
from bootpig.models.pipelines.common import reading
from bootpig.models.pretrained.finite import check_pipeline
from bootpig.models.pretrained.source import ModelSource, content_digest
from bootpig.stages.engine.contract import Progress
from bootpig.stages.engine.earlier import Earlier
from bootpig.stages.engine.saved import Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.benchmarks.cut_outs import CutOut
from bootpig.stages.evaluate.config import ComparedConfig
from bootpig.stages.evaluate.drawing import METHODS, Drawing, prepared_references
from bootpig.stages.evaluate.drawn import FILE, describe, find_earlier
from bootpig.stages.evaluate.gallery import DrawnPictures, PictureFiles
from bootpig.stages.evaluate.methods import Easel, draw_methods
from bootpig.stages.evaluate.rivals.draw import draw_rivals
from bootpig.stages.evaluate.rivals.models import Rival
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.sampling import latent_shape
from bootpig.storage.fingerprint import digest
from bootpig.storage.jsonio import parse_json

_SETTINGS = ("scheduler", "steps", "guidance_scale")
"""Settings that change the pictures of all our own methods."""
_REFERENCE_SETTINGS = ("reference_guidance_scale", "references", "pooling")
"""Settings that change the pictures of those that see references."""


@dataclass(frozen=True)
class Evaluation:
    """What is drawn, and with which models."""

    config: ComparedConfig
    dtype: str
    model: Path
    """The folder of the trained model."""
    base: ModelSource
    sources: Mapping[str, ModelSource]
    """All models, by name."""
    subjects: Sequence[Subject]
    rows: Sequence[Drawing]
    rivals: Sequence[Rival]
    cut: Mapping[Path, CutOut] | None
    """The masks of a benchmark's references."""
    device: torch.device

    @property
    def methods(self) -> tuple[str, ...]:
        """Our own methods, then the rivals."""
        return (*METHODS, *(rival.config.name for rival in self.rivals))

    def keys(self) -> dict[str, str]:
        """Method → the digest of all that its pictures depend on."""
        c = self.config
        shared = {
            "rows": [[row.file, row.prompt, row.seed] for row in self.rows],
            "batch_size": c.batch_size,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("diffusers", "pillow", "torch", "transformers")},
        }
        shown = {
            "subjects": self.sources["subjects"].as_json(),
            "cut": digest([[path.name, each.mask] for path, each in sorted((self.cut or {}).items())]),
        }
        text = {
            **shared,
            "base": self.base.as_json(),
            "dtype": self.dtype,
            "config": {name: getattr(c, name) for name in _SETTINGS},
        }
        with_reference = {**shown, "reference_config": {name: getattr(c, name) for name in _REFERENCE_SETTINGS}}
        weights = {"model": content_digest(self.model)}
        depends_on: dict[str, dict[str, Any]] = {
            "text_only": {},
            "untrained": {**with_reference, "reading": reading(self._info())},
            "bootpig": {**with_reference, **weights},
            "bootpig_no_reference": weights,
        }
        keys = {method: digest({"method": method, **text, **depends_on[method]}) for method in METHODS}
        for rival in self.rivals:
            settings = {name: value for name, value in rival.config.hashed().items() if name != "name"}
            keys[rival.config.name] = digest(
                {
                    **shared,
                    **shown,
                    "rival": settings,
                    "defaults": [c.steps, c.guidance_scale, self.dtype, c.references],
                    "prompts": [rival.prompts(subject) for subject in self.subjects],
                    "models": {
                        name.removeprefix(rival.key): source.as_json()
                        for name, source in self.sources.items()
                        if name.startswith(f"{rival.key}.")
                    },
                }
            )
        return keys

    def draw(
        self,
        folder: Path,
        open_pieces: Callable[[], Pieces | None],
        earlier: Earlier,
        share: Share,
        progress: Progress,
    ) -> tuple[dict[str, PictureFiles], dict[str, DrawnPictures]]:
        """Draw what does not exist yet.

        Args:
            folder: where the pictures are written, in a folder for each method. Does not exist.
            open_pieces: the pieces of the unfinished result, as they are now.
            earlier: finds finished evaluations, whose pictures are taken over where they are the same.

        Returns:
            The prepared references by subject, and the pictures of each method, one per row, as files.

        Raises:
            InputError, ModelError: a reference or a model cannot be used.
            FatalError: a method has no picture of a subject that is finite, or memory runs out.
            RuntimeError: another rank has died.
        """
        (folder / "reference").mkdir(parents=True)
        found = find_earlier(self.keys(), earlier)
        size = self.config.batch_size
        easel = Easel(self.rows, size, folder, open_pieces, found, share, progress, len(self.methods))
        references, drawn = self._with_bootpig(easel)
        gc.collect()
        free_memory()
        if self.rivals:
            drawn |= draw_rivals(self.rivals, self.sources, references, self.config, self.dtype, self.device, easel)
        return references, drawn

    def describe(self, workdir: Path, drawn: Mapping[str, DrawnPictures]) -> None:
        """Write `drawn.json`, from which later evaluations know these pictures."""
        (workdir / FILE).write_text(describe(self.keys(), drawn), encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        """What the trained model says of itself."""
        info: dict[str, Any] = parse_json((self.model / "bootpig.json").read_bytes())
        return info

    def _with_bootpig(self, easel: Easel) -> tuple[dict[str, PictureFiles], dict[str, DrawnPictures]]:
        """The prepared references, and the pictures of our own methods."""
        pipeline: Any = load_base(self.base, torch_dtype(self.dtype))
        if self.config.scheduler is not None:
            set_scheduler(pipeline, self.base, self.config.scheduler)
        pipeline.read_like(self._info())  # for `untrained`
        pipeline.to(self.device)
        check_pipeline(self.base, pipeline)
        pipeline.set_progress_bar_config(disable=True)
        references: dict[str, PictureFiles] = {}
        side = min(latent_shape(pipeline)[2:]) * pipeline.vae_scale_factor
        for name, prepared in prepared_references(self.subjects, side, self.cut):
            paths = [easel.folder / "reference" / f"{name}-{number:02d}.png" for number in range(len(prepared))]
            for path, picture in zip(paths, prepared, strict=True):
                picture.save(path)
            references[name] = PictureFiles(paths)
        return references, draw_methods(pipeline, self.model, references, self.config.sampling(), easel)
