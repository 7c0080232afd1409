"""The training log: metrics as JSON lines and sample pictures, which experiment trackers get too."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from PIL import Image

from bootpig.stages.train.trackers import Trackers
from bootpig.storage.jsonio import parse_json


class TrainingLog:
    """Writes `log.jsonl` and `samples/step-<n>.png` to a folder, and sends both to trackers.

    A line has step (updates done), epoch, loss (mean since the previous line), per_device_batch_size (smaller than
    configured if memory ran out), grad_norm_reference and grad_norm_base (of this update, before clipping; without the
    former if it dropped the references), learning_rate_reference, learning_rate_base, and what `meter.Meter` measures,
    which alone differs between equal runs. Where held-out samples were measured, it has the values of
    `validation.Reading`. A value that is not finite is left out.
    """

    def __init__(self, folder: Path, trackers: Trackers) -> None:
        self.folder = folder
        self.trackers = trackers
        self.lines: list[dict[str, float]] = []
        (folder / "samples").mkdir(parents=True, exist_ok=True)

    def line(self, values: dict[str, float], *, restored: bool = False) -> None:
        """Add one line of metrics; `values["step"]` is its step."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.lines.append(values)
        with open(self.folder / "log.jsonl", "a") as stream:
            stream.write(json.dumps(values) + "\n")
        self.trackers.line(values, patient=restored)

    def picture(self, step: int, picture: Image.Image, *, restored: bool = False) -> None:
        """Add one RGB picture."""
        picture.save(self.folder / "samples" / f"step-{step:06d}.png")
        self.trackers.picture(step, picture, patient=restored)

    def save(self, folder: Path) -> None:
        """Copy all lines and pictures into a checkpoint folder."""
        (folder / "log.jsonl").write_text("".join(json.dumps(values) + "\n" for values in self.lines))
        shutil.copytree(self.folder / "samples", folder / "samples")

    def restore(self, folder: Path) -> None:
        """Restore the lines and pictures from a checkpoint folder, in order of their steps."""
        lines = [parse_json(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        files = {int(file.stem.removeprefix("step-")): file for file in (folder / "samples").glob("step-*.png")}
        by_step = {values["step"]: values for values in lines}
        for step in sorted(by_step.keys() | files.keys()):
            if step in by_step:
                self.line(by_step[step], restored=True)
            if step in files:
                with Image.open(files[step]) as picture:
                    self.picture(step, picture.convert("RGB"), restored=True)

    def close(self) -> None:
        self.trackers.close()
