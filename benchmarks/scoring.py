"""Measures the memory of scoring: pictures of 1024 pixels that cost nothing to draw, in two numbers of them.

`python -m benchmarks.scoring [--counts 40 160] [--metrics dino …]` prints the peak memory of a process for each number,
and what 12,000 pictures would take if it grew with the number. The judges are small, so that memory is that of the
pictures and of what is kept of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from bootpig.models.pretrained.sources import resolve
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import drawings
from bootpig.stages.evaluate.gallery import DrawnPictures
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.measures.config import Measured
from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.stages.evaluate.measuring import Measuring
from bootpig.stages.evaluate.scoring import Scores
from bootpig.stages.evaluate.stage import EvaluateConfig
from bootpig.stages.evaluate.subjects import read_subjects

SIDE = 1024
BATCH = 16
WHOLE = 12_000
LIMIT_MIB = 2048
TOY = FOLDER.parent / "checkpoints"
NAMES = tuple(name for name, facts in MEASURES.items() if facts.feature not in ("siglip",))


def measure(count: int, metrics: list[str]) -> dict[str, Any]:
    """Score `count` pictures in this process. Returns its peak memory in MiB and the seconds per picture."""
    segment = {"detector": TOY / "owlvit", "sam": TOY / "sam" / "sam_vit_toy.safetensors", "sam_type": "vit_toy"}
    config = EvaluateConfig.model_validate(
        {
            **{name: str(TOY / name) for name in ("clip", "dino")},
            "dinov2": str(TOY / "dino"),
            "subjects": str(FOLDER),
            "images_per_prompt": 2,
            "metrics": metrics,
            "segment": {name: str(value) for name, value in segment.items()},
        }
    )
    subjects = read_subjects(FOLDER, (), 1)
    each = max(2, -(-count // sum(len(subject.prompts) for subject in subjects)))
    rows = drawings(subjects, each, seed=0)[:count]
    subjects = list({row.subject.name: row.subject for row in rows}.values())
    measured = Measured(config, "evaluate")
    sources = measured.segmenters() | {
        name: resolve(f"evaluate.{name}", str(getattr(config, name))) for name in measured.models
    }
    with TemporaryDirectory(prefix="bootpig-") as scratch:
        drawn = DrawnPictures("bootpig", Path(scratch, "images"), rows, BATCH, None)
        for number, path in enumerate(drawn.files.paths):
            with Image.open(subjects[number % len(subjects)].real[0]) as picture:
                picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, compress_level=1)
        scores = Scores(subjects, rows, ["bootpig"], {}, config.metrics)
        begin = time.perf_counter()
        judges, cpu = Judges(sources, measured.models), torch.device("cpu")
        Measuring(
            measured, judges, {"bootpig": drawn}, scores, Share(), lambda: None, cpu, Path(scratch, "masks")
        ).measure(config.metrics)
        seconds = time.perf_counter() - begin
        scored = {name: int(np.isfinite(scores.drawn["bootpig"][name]).sum()) for name in config.metrics}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"count": count, "peak_mib": round(peak), "seconds_per_picture": round(seconds / count, 3), "scored": scored}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--counts", type=int, nargs=2, default=[40, 160])
    parser.add_argument("--metrics", nargs="+", default=list(NAMES))
    parser.add_argument("--one", type=int, help="score so many pictures in this process, and print the result as JSON")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measure(asked.one, asked.metrics)))
        return
    command = [sys.executable, "-m", "benchmarks.scoring", "--metrics", *asked.metrics, "--one"]
    found = []
    for count in asked.counts:
        answer = subprocess.run([*command, str(count)], check=True, capture_output=True, text=True).stdout
        found.append(json.loads(answer.splitlines()[-1]))
        print(f"{count:6} pictures of {SIDE} px: {found[-1]}", flush=True)
    few, many = found
    growth = max(0.0, (many["peak_mib"] - few["peak_mib"]) / (many["count"] - few["count"]))
    whole = many["peak_mib"] + growth * (WHOLE - many["count"])
    print(f"{growth * 1024:.0f} KiB more per picture; {WHOLE} pictures: {whole:.0f} MiB of {LIMIT_MIB}")


if __name__ == "__main__":
    main()
