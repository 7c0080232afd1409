"""Draws and judges a few validation subjects with a model in training, with the code of the evaluate stage."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from bootpig.models.memory import free_memory
from bootpig.models.painters.loading import set_scheduler
from bootpig.models.pretrained.source import ModelSource
from bootpig.stages.engine.contract import Progress
from bootpig.stages.evaluate.drawing import Drawing, draw, drawings, prepared_references
from bootpig.stages.evaluate.gallery import DrawnPictures
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.scoring import Scores, read_whole
from bootpig.stages.sampling import latent_shape
from bootpig.stages.train.best import Best, Point
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.grid import sampling
from bootpig.stages.train.log import TrainingLog
from bootpig.stages.train.subjects import SECTION, ValidationSubjects

_LOG = logging.getLogger(__name__)

JUDGES = ("clip", "dino")

_FIX = "lower the learning rates or the guidance scales, or set train.mixed_precision to no"


class Evaluation:
    """DINO and CLIP-T of the validation subjects, before the first update, every so many updates, and after the last.

    Every rank must have one and call it at every update: they share the batches of pictures, and the first rank judges
    them. So the scores do not depend on the number of ranks, and no rank waits for more than a batch and the judges,
    far less than the time limit of a collective. The pipeline shares its UNets with the model in training. The state of
    training does not change. A failure is only a warning.
    """

    def __init__(
        self,
        config: TrainConfig,
        judges: Mapping[str, ModelSource],
        base: ModelSource,
        pipeline: Any,
        accelerator: Accelerator,
        *,
        weights: Callable[[], Mapping[str, torch.Tensor]],
        averaged: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """
        Args:
            config: the settings of the train stage; `evaluate_every` and `evaluation` are set.
            judges: `clip` and `dino`.
            base: the base model, for messages.
            pipeline: a `BootPIGPipeline` with the UNets in training.
            accelerator: of the training.
            weights: returns the trained weights by name, not copied.
            averaged: returns a context in which they are their moving average, if there is one.

        Raises:
            InputError, ModelError: a subject, a judge or the scheduler cannot be used.
        """
        assert config.evaluate_every is not None and config.evaluation is not None
        self.config = config
        self.settings = config.evaluation
        self.every = config.evaluate_every
        self.pipeline = pipeline
        self.accelerator = accelerator
        self.weights = weights
        self.averaged = averaged
        self.subjects = ValidationSubjects(self.settings).decodable_subjects()
        self.rows = drawings(self.subjects, self.settings.images_per_prompt, self.settings.seed)
        side = min(latent_shape(pipeline)[2:]) * pipeline.vae_scale_factor
        self.references = dict(prepared_references(self.subjects, side))
        pipeline.set_progress_bar_config(disable=True)
        before = pipeline.scheduler
        if self.settings.scheduler is not None:
            set_scheduler(pipeline, base, self.settings.scheduler)
        self.scheduler, pipeline.scheduler = pipeline.scheduler, before
        self.judges: Judges | None = Judges(judges, JUDGES) if accelerator.is_main_process else None
        """None except in the main process."""
        self.best = Best() if config.keep == "best" and accelerator.is_main_process else None
        """None except in the main process, and with `keep: best`."""

    def __call__(self, done: int, log: TrainingLog | None, progress: Progress) -> float:
        """Score the weights after `done` updates if that is due, and add a line to the log.

        Returns:
            The seconds it took.
        """
        if done % self.every and done != self.config.steps:
            return 0.0
        began = time.monotonic()
        progress(done, self.config.steps, "drawing the validation subjects")
        values: dict[str, float] = {}
        if done == 0 and (text_only := self._point(done, with_reference=False)):
            values |= {"text_only_dino": text_only.dino, "text_only_clip_t": text_only.clip_t}
            if self.best:
                self.best.text_only = text_only
        with self.averaged():
            point = self._point(done, with_reference=True)
            if point and done and self.best:  # a model without an update is not a result
                self.best.offer(point, self.weights)
        if point:
            values |= {"validation_dino": point.dino, "validation_clip_t": point.clip_t}
        if log and values:
            log.line({"step": done, **values})
        return time.monotonic() - began

    def _point(self, done: int, *, with_reference: bool) -> Point | None:
        """The scores of the current weights. None after a failure, and except in the main process."""
        shares = [self._share(with_reference)]
        if self.accelerator.num_processes > 1:
            shares = gather_object(shares)
        if self.judges is None:
            return None
        failures = [share for share in shares if isinstance(share, str)]
        drawn = [share for share in shares if not isinstance(share, str)]
        try:
            if not failures:
                return self._judged(done, self.judges, self._in_order(drawn))
        except Exception as error:
            failures = [_reason(error)]
        _LOG.warning("%s: no scores at step %d (%s)", SECTION, done, failures[0])
        free_memory()
        return None

    def _share(self, with_reference: bool) -> list[Image.Image | None] | str:
        """The pictures of this rank's batches, or why they cannot be drawn. Never raises: other ranks wait for it."""
        own = self._batches()[self.accelerator.process_index :: self.accelerator.num_processes]
        rows = [row for batch in own for row in batch]
        references = self.references if with_reference else None
        try:
            with self._sampling():
                batches = draw(self.pipeline, rows, references, self.settings.sampling(), SECTION)
                return [picture for batch in batches for picture in batch]
        except Exception as error:
            free_memory()
            return _reason(error)

    def _in_order(self, shares: Sequence[Sequence[Image.Image | None]]) -> list[Image.Image | None]:
        """The pictures of all rows, from those of each rank."""
        rest = [iter(share) for share in shares]
        return [next(rest[number % len(rest)]) for number, batch in enumerate(self._batches()) for _ in batch]

    def _batches(self) -> list[list[Drawing]]:
        size = self.settings.batch_size
        return [self.rows[begin : begin + size] for begin in range(0, len(self.rows), size)]

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[None]:
        """A context in which the pipeline samples with the scheduler and in the arithmetic of the configuration."""
        before = self.pipeline.scheduler
        bf16 = self.config.mixed_precision == "bf16"  # frozen weights may be stored in it
        with sampling(self.pipeline), self.accelerator.autocast() if bf16 else contextlib.nullcontext():
            try:
                self.pipeline.scheduler = self.scheduler
                yield
            finally:
                self.pipeline.scheduler = before

    def _judged(self, done: int, judges: Judges, pictures: list[Image.Image | None]) -> Point:
        method = "bootpig"
        with TemporaryDirectory(prefix="bootpig-") as scratch:
            drawn = DrawnPictures(method, Path(scratch, method), self.rows, self.settings.batch_size, None)
            drawn.add(pictures)
            drawn.check_finite(_FIX, SECTION)
            names = {"clip_t": "clip", "dino": "dino"}
            scores = Scores(self.subjects, self.rows, [method], {method: drawn.not_finite}, list(names))
            with judges.on(self.accelerator.device):
                for name, model in names.items():
                    found = read_whole(scores, judges.encoders[model], {method: drawn.files})
                    scores.add(name, judges.measure(name), found)
        dino, clip_t = (round(float(np.mean(scores.by_subject(method, name))), 6) for name in ("dino", "clip_t"))
        return Point(done, dino, clip_t)


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
