"""`bootpig generate` and `bootpig evaluate`: a trained model at work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.runs import read_run
from models.sources import PIPELINE, loading, resolve
from stages.base import InputError, Progress
from stages.config import PipelineConfig
from stages.subjects import read_picture
from stages.survey import make_stage
from storage.errors import CorruptPart
from storage.folders import fetch_folder, read_manifest
from storage.root import Root


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; the guidance scales are those of eq. 4."""

    steps: int
    guidance_scale: float
    reference_guidance_scale: float
    seed: int
    count: int


def model_folder(model: str, root: str, scratch: Path) -> Path:
    """The folder of a trained model.

    Args:
        model: the folder itself, a folder that has it as `model/` or `result/model/`, a run id, or `latest`.
        root: the store where runs are looked for.
        scratch: where a model is copied to that lies in a remote store.

    Raises:
        InputError: there is no trained model.
    """
    for folder in (Path(model), Path(model, "model"), Path(model, "result", "model")):
        if (folder / "bootpig.json").is_file():
            return folder
    if Path(model).exists():
        raise InputError(f"model: {model!r} → holds no bootpig.json; give the folder of a trained model")
    store = Root(root)
    record = read_run(store, model)
    trained = record.stages.get("train")
    path = f"train/{trained.fingerprint}/result" if trained is not None else ""
    files = read_manifest(store, path) if path else None
    if files is None:
        raise InputError(f"model: {model!r} → that run has no trained model; see bootpig runs")
    wanted = {name: facts for name, facts in files.items() if name.startswith("model/")}
    try:
        return fetch_folder(store, path, wanted, scratch) / "model"
    except CorruptPart as error:
        raise InputError(f"model: {model!r} → {error}") from None


def generate(
    model: Path, references: list[Path], prompt: str, outputs: Path, sampling: Sampling, progress: Progress
) -> list[Path]:
    """Draw the subject of the references as the prompt says.

    Args:
        references: pictures of one subject, RGB on white or RGBA cut out; none: the trained base alone.
        outputs: a .png file; with several pictures -0, -1, … are put before the suffix.

    Returns:
        The files written.

    Raises:
        InputError, ModelError: a picture, the model or its base cannot be used.
    """
    if outputs.suffix.lower() != ".png":
        raise InputError(f"--out: {str(outputs)!r} → give a name that ends in .png")
    pictures = [read_picture(path) for path in references]
    info = model_info(model)

    import torch

    from models.bases import load_base
    from models.devices import torch_device

    base = resolve("model.base", str(info.get("base") or ""), info.get("revision"), PIPELINE)
    device = torch_device("device", "auto")
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    pipeline: Any = load_base(base, dtype)
    with loading("model", str(model)):
        pipeline.load_bootpig(model)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)

    def step(pipe: Any, done: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(done + 1, sampling.steps, "")
        return {}

    images = pipeline(
        prompt,
        reference_images=pictures or None,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        reference_guidance_scale=sampling.reference_guidance_scale,
        num_images_per_prompt=sampling.count,
        generator=torch.Generator().manual_seed(sampling.seed),
        callback_on_step_end=step,
    ).images
    many = len(images) > 1
    files = [outputs.with_stem(f"{outputs.stem}-{number}") if many else outputs for number in range(len(images))]
    outputs.parent.mkdir(parents=True, exist_ok=True)
    for image, file in zip(images, files, strict=True):
        image.save(file)
    return files


def model_info(model: Path) -> dict[str, Any]:
    """What a trained model's `bootpig.json` says. Raises InputError when it is unreadable."""
    try:
        info: dict[str, Any] = json.loads((model / "bootpig.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {str(model / 'bootpig.json')!r} → cannot be read ({error})") from None
    if not info.get("base"):
        raise InputError(f"model: {str(model / 'bootpig.json')!r} → names no base model; train it again")
    return info


def evaluate(model: Path, config: PipelineConfig, outputs: Path, progress: Progress) -> dict[str, Any]:
    """Measure a trained model with the `evaluate` part of a configuration, outside any store.

    Returns:
        The metrics; they and the contact sheet lie in `outputs`.

    Raises:
        InputError, ModelError: the model, the subjects or an embedder cannot be used.
    """
    if outputs.exists() and (not outputs.is_dir() or any(outputs.iterdir())):
        raise InputError(f"--out: {str(outputs)!r} → is there already; give a new folder")
    from stages.evaluate import Evaluate

    stage = make_stage(config, "evaluate")
    assert isinstance(stage, Evaluate)
    stage.models()
    outputs.mkdir(parents=True, exist_ok=True)
    return stage.measure(model, outputs, progress)
