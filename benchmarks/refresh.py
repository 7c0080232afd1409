"""Measures subject fidelity if reference features are refreshed every n steps: `python -m benchmarks.refresh MODEL`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bootpig.flows.loading import load_config
from bootpig.models.devices import torch_device, torch_dtype
from bootpig.models.pipelines.bases import load_base
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.evaluate.drawing import draw, drawings, prepared_references
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.scoring import Scores, read_whole
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.sampling import Sampling, latent_shape


def measure(model: Path, config: str, every: list[int]) -> list[dict[str, Any]]:
    """Seconds and DINO score of the pictures that evaluate draws, for each n in `every`.

    Args:
        model: folder of a trained model.
        config: its `evaluate` section gives subjects and sampling settings.
        every: values for `reference_refresh_steps`.
    """
    stage = make_stage(load_config(config), "evaluate")
    assert isinstance(stage, Evaluate)
    own, subjects = stage.config, stage.protocol.subjects()
    device = torch_device("evaluate.device", own.device)
    pipeline: Any = load_base(stage.base(model), torch_dtype(own.dtype))
    pipeline.load_bootpig(model)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    references = dict(prepared_references(subjects, min(latent_shape(pipeline)[2:]) * pipeline.vae_scale_factor))
    rows = drawings(subjects, own.images_per_prompt, own.seed)
    pictures, seconds = {}, {}
    for n in every:
        sampling = Sampling(own.steps, own.guidance_scale, own.reference_guidance_scale, own.batch_size, n)
        begin = time.perf_counter()
        pictures[str(n)] = [picture for batch in draw(pipeline, rows, references, sampling) for picture in batch]
        seconds[n] = time.perf_counter() - begin
    scores = Scores(subjects, rows, list(pictures), names=["dino"])
    judges = Judges(stage.models(), ["dino"])
    with judges.on(device):
        scores.add("dino", judges.measure("dino"), read_whole(scores, judges.encoders["dino"], pictures))
    return [
        {
            "every": n,
            "seconds": round(seconds[n], 2),
            "dino": round(float(scores.drawn[str(n)]["dino"].mean()), 4),
            "images": len(rows),
            "steps": own.steps,
        }
        for n in every
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("--config", default="configs/toy.yaml")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 3, 4, 6])
    parser.add_argument("--threads", type=int, help="number of PyTorch threads")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    found = measure(asked.model, asked.config, asked.every)
    table = Table(*found[0])
    for row in found:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
