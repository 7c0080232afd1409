"""Sends a training's values to TensorBoard, Weights & Biases, Trackio and MLflow, through accelerate's trackers."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bootpig.stages.train.tracker_logins import one_line
from bootpig.storage.root import masked
from bootpig.storage.secrets import mask

if TYPE_CHECKING:
    from PIL import Image

PROJECT = "bootpig"
"""Name of the project or experiment, unless `WANDB_PROJECT` or `MLFLOW_EXPERIMENT_NAME` is set."""

WAITING = 1000
"""Most values and pictures that wait for a tracker. Further ones are lost."""

PATIENCE_SECONDS = 60.0
"""Time that a tracker has for what still waits when the training ends."""

_LOG = logging.getLogger(__name__)


class Sink(Protocol):
    """The part of accelerate's `GeneralTracker` that is used here."""

    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


class Tracker:
    """One tracker in a thread of its own, since its network and its disk may be slow, and its package may keep state by
    thread. A failure is one warning in all, and the next values are tried again.

    Args:
        name: of the tracker, for the warning.
        make: makes it.
        settings: the configuration, see `flat`.
    """

    def __init__(self, name: str, make: Callable[[], Sink], settings: Mapping[str, Any]) -> None:
        self.name = name
        self._warned = False
        self._waiting: queue.Queue[Callable[[Any], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, args=(make, settings), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[Any], None], *, patient: bool = False) -> None:
        """Call `call(tracker)` soon. Returns at once, unless `patient`: then it waits for a place in the queue."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put(call, timeout=PATIENCE_SECONDS if patient and not self._warned else 0.0)
        except queue.Full:
            self._warn("it is too slow")

    def close(self) -> None:
        """Let the tracker finish what waits, for `PATIENCE_SECONDS`."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=PATIENCE_SECONDS)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn("it does not end")

    def _run(self, make: Callable[[], Sink], settings: Mapping[str, Any]) -> None:
        try:
            sink = make()
            sink.start()
        except BaseException as error:  # a package may end its thread by SystemExit
            self._warn(f"it did not start, {one_line(error)}")
            return
        self._try(lambda: _store(self.name, sink, settings))
        while (call := self._waiting.get()) is not None:
            self._try(lambda call=call: call(sink))  # type: ignore[misc]
        self._try(sink.finish)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self._warn(one_line(error))

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning("train.trackers: %s lacks values of this training, which goes on (%s)", self.name, reason)


class Trackers:
    """The trackers of one training. Nothing that happens in them ends it.

    Args:
        names: of the trackers, see `TrainConfig.trackers`.
        folder: TensorBoard writes to its `tensorboard/`. The others write where their environment variables say.
        run: the id of the run.
        settings: the configuration of the training, as nested mappings.
    """

    def __init__(self, names: Sequence[str], folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        values = {"run": run, **flat(settings)}
        self._trackers = [Tracker(name, lambda name=name: _make(name, folder, run), values) for name in names]  # type: ignore[misc]

    def line(self, values: Mapping[str, float], *, patient: bool = False) -> None:
        """Send one line of the log. `values["step"]` is its step. `patient`: see `Tracker.send`."""
        step = int(values["step"])
        named = {f"train/{name}": value for name, value in values.items() if name != "step"}
        for tracker in self._trackers:
            tracker.send(lambda sink: sink.log(named, step=step), patient=patient)

    def picture(self, step: int, picture: Image.Image, *, patient: bool = False) -> None:
        """Send an RGB picture to those that show pictures beside values."""
        for tracker in self._trackers:
            if tracker.name in _SHOWS:
                tracker.send(partial(_SHOWS[tracker.name], step=step, picture=picture), patient=patient)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def _make(name: str, folder: Path, run: str) -> Sink:
    from accelerate import tracking

    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", folder)
    if name == "mlflow":
        return tracking.MLflowTracker(PROJECT, run_name=run)
    if name == "trackio":
        return tracking.TrackioTracker(PROJECT, name=run)
    import wandb

    # what it would find by itself, such as the command line and the address of a git remote, may hold secrets
    quiet = wandb.Settings(console="off", disable_git=True, x_disable_meta=True, x_save_requirements=False)
    return tracking.WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), name=run, settings=quiet)


def _store(name: str, sink: Any, settings: Mapping[str, Any]) -> None:
    if name == "tensorboard":  # accelerate would write them to another folder, named after the time
        sink.log({"settings": "\n".join(f"    {key}: {value}" for key, value in settings.items())}, step=0)
    else:
        sink.store_init_configuration(dict(settings))


def _show_on_tensorboard(sink: Any, step: int, picture: Image.Image) -> None:
    import numpy as np

    sink.log_images({"samples": np.asarray(picture)[None]}, step, dataformats="NHWC")


_SHOWS: dict[str, Callable[..., None]] = {
    "tensorboard": _show_on_tensorboard,
    "wandb": lambda sink, step, picture: sink.log_images({"samples": [picture]}, step),
}
"""Tracker → how it shows a picture, of those that show them beside values."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str | None]:
    """Nested settings as `train.steps` → value: numbers, text without secrets, or JSON for a list."""
    found: dict[str, bool | int | float | str | None] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, bool | int | float):
            found[f"{prefix}{name}"] = value
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found[f"{prefix}{name}"] = masked(mask(text))
    return found
