"""`bootpig plan`: what a run would do and what it would take. Touches nothing."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from rich.table import Table

from models.sources import local_path
from stages.config import PipelineConfig
from stages.engine import Engine
from stages.evaluate import Evaluate
from stages.registry import MAP_STAGES, STAGES
from stages.survey import StageSurvey, make_stage
from storage.root import Root

UNET_TFLOP = 0.80
"""One forward pass of SD 2.1's UNet at 512 px, a sample; likewise the figures below (METHOD's operation counts)."""
TRAIN_TFLOP = 4.5
VAE_ENCODE_TFLOP = 1.1
VAE_DECODE_TFLOP = 2.5
SAM_TFLOP = {"vit_b": 1.0, "vit_l": 3.0, "vit_h": 6.0, "vit_toy": 0.001}
DETECTOR_TFLOP = 0.4

UNET_PARAMETERS = 865.9e6
XL_UNET_PARAMETERS = 2567e6
VAE_PARAMETERS = 83.7e6

GPU_TFLOP_PER_SECOND = 0.4 * 800.0
USD_PER_GPU_HOUR = 2.5

ASSUMPTIONS = (
    f"one H100 at 40 % of {GPU_TFLOP_PER_SECOND / 0.4:.0f} TFLOP/s, {USD_PER_GPU_HOUR:.2f} USD an hour",
    "operations grow with the number of weights and of latent pixels; a model that is not on this disk has SD 2.1's "
    "size (SDXL's if its name has 'xl')",
    "no sample is rejected, so every stage sees all of them; captions cost nothing",
    "seconds: this store's own logs of the same stage and settings, where it has any",
)


def plan(config: PipelineConfig) -> dict[str, Any]:
    """Per stage: units cached and due, samples due, GPU-hours, cost, measured seconds; missing models; assumptions.

    Raises:
        StoreError: the root cannot be opened.
    """
    engine = Engine(config)
    missing = engine.missing_models()
    stages: dict[str, Any] = {}
    blocked = False
    dirty = False
    for name in STAGES:
        blocked = blocked or bool(missing[name])
        survey = None if blocked else engine.survey(name)
        facts = _stage(engine, name, survey, dirty)
        dirty = dirty or facts["units"]["due"] > 0
        stages[name] = facts
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("gpu_hours", "cost_usd")}
    return {
        "root": config.root,
        "stages": stages,
        "total": total,
        "missing": list(dict.fromkeys(line for lines in missing.values() for line in lines)),
        "assumptions": list(ASSUMPTIONS),
    }


def _stage(engine: Engine, name: str, survey: StageSurvey | None, dirty: bool) -> dict[str, Any]:
    config = engine.config
    units = len(engine.units()) if name in MAP_STAGES else 1
    cached = survey.count("complete") if survey is not None else 0
    if name not in MAP_STAGES and dirty:
        cached = 0  # its data set is about to change
    due = units - cached
    samples = due * config.unit_size if name in MAP_STAGES else due
    gpu_hours = samples * _tflop(config, name) / GPU_TFLOP_PER_SECOND / 3600
    pace = _measured(engine.root, survey) if survey is not None else None
    return {
        "units": {"total": units, "cached": cached, "due": due},
        "samples": samples,
        "seconds": None if pace is None else round(pace * due, 1),
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * USD_PER_GPU_HOUR,
    }


def _tflop(config: PipelineConfig, name: str) -> float:
    """Operations a sample of a map stage takes, or the one result of a reduce stage, in TFLOP."""
    s = config.synthesize
    side = config.augment.size or min(s.height, s.width)
    if name == "synthesize":
        passes = 2 if s.guidance_scale > 1 else 1
        pixels = s.height * s.width
        return s.steps * passes * _unet(s.model, pixels) + _vae(s.model, VAE_DECODE_TFLOP, pixels)
    if name == "segment":
        return SAM_TFLOP[config.segment.sam_type] + (0.0 if config.segment.sam_type == "vit_toy" else DETECTOR_TFLOP)
    if name == "encode":
        references = config.augment.references if config.augment.enabled else 1
        return (1 + references) * _vae(config.encode.model, VAE_ENCODE_TFLOP, side**2)
    if name == "train":
        t = config.train
        return t.steps * t.global_batch_size * _unet(t.model, side**2) * TRAIN_TFLOP / UNET_TFLOP
    if name == "evaluate":
        e = config.evaluate
        # five passes a step over the four methods: 2 without a reference, 3 and the Reference UNet with one
        return _pictures(config) * e.steps * 12 * _unet(config.train.model, side**2)
    return 0.0


def _pictures(config: PipelineConfig) -> int:
    """Pictures a method draws; the DreamBooth benchmark's 30 × 25 captions where the folder is missing."""
    stage = make_stage(config, "evaluate")
    assert isinstance(stage, Evaluate)
    try:
        captions = sum(len(subject.prompts) for subject in stage.subjects())
    except ValueError:
        captions = 30 * 25
    return captions * config.evaluate.images_per_prompt


def _unet(model: str, pixels: int) -> float:
    usual = XL_UNET_PARAMETERS if "xl" in model.lower() else UNET_PARAMETERS
    return UNET_TFLOP * _parameters(model, "unet", usual) / UNET_PARAMETERS * pixels / 512**2


def _vae(model: str, tflop: float, pixels: int) -> float:
    return tflop * _parameters(model, "vae", VAE_PARAMETERS) / VAE_PARAMETERS * pixels / 512**2


def _parameters(model: str, part: str, usual: float) -> float:
    """The weights of a pipeline's part, from the headers of its safetensors files; `usual` if it is not here."""
    folder = local_path(model)
    files = sorted((folder / part).glob("*.safetensors")) if folder is not None else []
    try:
        return float(sum(_weights(file) for file in files)) or usual
    except (OSError, ValueError, KeyError, struct.error):
        return usual


def _weights(file: Path) -> int:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(size, 100_000_000)))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _measured(root: Root, survey: StageSurvey) -> float | None:
    """Mean seconds a unit took, by the last log line of each unit made under this very fingerprint."""
    names = [name for name in root.names(survey.path) if name.startswith("log-")] if survey.path else []
    seconds = []
    for data in root.read_many([f"{survey.path}/{name}" for name in names]).values():
        done = [record for line in data.splitlines() if (record := json.loads(line)).get("event") == "done"]
        seconds += [done[-1]["seconds"]] if done else []
    return sum(seconds) / len(seconds) if seconds else None


def plan_table(facts: dict[str, Any]) -> Table:
    """The same for a person."""
    table = Table("stage", "units", "cached", "due", "samples due", "seconds", "GPU-hours", "USD", title=facts["root"])
    for name, stage in facts["stages"].items():
        units = stage["units"]
        seconds = "–" if stage["seconds"] is None else f"{stage['seconds']:.0f}"
        numbers = [str(units["total"]), str(units["cached"]), str(units["due"]), str(stage["samples"]), seconds]
        table.add_row(name, *numbers, f"{stage['gpu_hours']:.3g}", f"{stage['cost_usd']:.2f}")
    table.add_row("total", *[""] * 5, f"{facts['total']['gpu_hours']:.3g}", f"{facts['total']['cost_usd']:.2f}")
    return table
