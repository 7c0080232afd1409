"""The training log: metrics as JSON lines, sample pictures, and both in TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bootpig.storage.jsonio import parse_json


class TrainingLog:
    """Writes `log.jsonl`, `samples/step-<n>.png` and `tensorboard/` to a folder.

    A line has step (updates done), epoch, loss (mean since the previous line), per_device_batch_size (smaller than
    configured if memory ran out), learning_rate_reference, learning_rate_base and samples_per_second. Only the last
    one differs between equal runs. Where held-out samples were measured, it has the values of `validation.Reading`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        self._events = SummaryWriter(str(folder / "tensorboard"))

    def line(self, values: dict[str, Any]) -> None:
        """Add one line of metrics. `values["step"]` is used as the TensorBoard step."""
        self.lines.append(values)
        with open(self.folder / "log.jsonl", "a") as stream:
            stream.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if name != "step":
                self._events.add_scalar(f"train/{name}", value, values["step"])

    def picture(self, step: int, picture: Image.Image) -> None:
        """Add one RGB picture."""
        picture.save(self.folder / "samples" / f"step-{step:06d}.png")
        self._events.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def save(self, folder: Path) -> None:
        """Copy all lines and pictures into a checkpoint folder."""
        (folder / "log.jsonl").write_text("".join(json.dumps(values) + "\n" for values in self.lines))
        shutil.copytree(self.folder / "samples", folder / "samples")

    def restore(self, folder: Path) -> None:
        """Restore the lines and pictures from a checkpoint folder."""
        for line in (folder / "log.jsonl").read_text().splitlines():
            self.line(parse_json(line))
        for file in sorted((folder / "samples").glob("step-*.png")):
            with Image.open(file) as picture:
                self.picture(int(file.stem.removeprefix("step-")), picture.convert("RGB"))

    def close(self) -> None:
        self._events.close()
