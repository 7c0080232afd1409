"""Subject-driven inpainting with a trained model: what happens outside the mask, and who is inside.

For each held-out subject, a picture of another subject of the same kind is taken, the other is masked with a margin,
and the subject is repainted in its place from one reference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from bootpig.flows.loading import load_config
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from bootpig.models.pretrained.embedders import DinoEmbedder
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.models.toy.world import render_scene
from bootpig.stages.engine.contract import InputError, sample_seed
from bootpig.stages.engine.engine import Engine
from bootpig.stages.evaluate.drawing import prepared_references
from bootpig.stages.evaluate.metrics import mean_cosine
from bootpig.stages.evaluate.subjects import Subject, read_subjects
from bootpig.stages.picture_files.reader import on_white, read_picture
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures, latent_shape
from bootpig.stages.sweep.bootstrap import interval
from bootpig.storage.folders import fetch_folder
from science import WORK
from science.recipes import BASE, DINO, RUN

FILE = WORK / "inpainting.json"
MARGIN = 5
"""Side of the filter that widens the masks, in pixels."""
SAMPLING = Sampling(steps=12, guidance_scale=2.0, reference_guidance_scale=5.0, batch_size=16)


def measure(root: str | None, file: Path = FILE) -> None:
    """Write PSNR outside the mask and DINO, with intervals over subjects, to `file`, unless it is there. The model is
    that of `RUN`.

    Raises:
        InputError: it is not trained.
    """
    config = load_config(RUN, [] if root is None else [f"root={root}"])
    engine = Engine(config)
    survey = engine.survey("train")
    if survey.result is None:
        raise InputError(f"science: {RUN} has no trained model in {engine.root.url}; run it first")
    if file.exists() and json.loads(file.read_text(encoding="utf-8")).get("model") == survey.result.path:
        return
    model = fetch_folder(engine.root, survey.result, WORK) / "model"
    trained = BootPIGPipeline.from_pretrained(
        BASE, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    trained.load_bootpig(model)
    pipeline: Any = BootPIGInpaintPipeline.from_pipe(trained)
    pipeline.set_progress_bar_config(disable=True)
    subjects = read_subjects(FOLDER, (), 1, "science")
    pictures, masks, captions = zip(*map(another, subjects), strict=True)
    side = min(latent_shape(pipeline)[2:]) * pipeline.vae_scale_factor
    references = dict(prepared_references(subjects, side))
    seeds = [Seeds(sample_seed(0, "inpainting", subject.name)) for subject in subjects]

    def drawn(with_reference: bool) -> list[Any]:
        def inputs(batch: Sequence[int]) -> dict[str, Any]:
            return {
                "prompt": [captions[place] for place in batch],
                "image": [pictures[place] for place in batch],
                "mask_image": [masks[place] for place in batch],
                "reference_images": [references[subjects[place].name] for place in batch] if with_reference else None,
            }

        batches = draw_pictures(pipeline, seeds, inputs, SAMPLING, setting="batch_size")
        return [each for batch in batches for each in batch]

    dino = DinoEmbedder(DINO)

    def likeness(found: Sequence[Any]) -> list[float]:
        vectors = dino.images([each.image for each in found])
        real = [dino.images([on_white(read_picture(path, "science")) for path in s.real]) for s in subjects]
        return [float(mean_cosine(vector, own)[0]) for vector, own in zip(vectors, real, strict=True)]

    ours, text_only = drawn(True), drawn(False)
    values = {
        "psnr": [each.known_psnr_db for each in ours],
        "inside": likeness(ours),
        "inside_text_only": likeness(text_only),
    }
    facts = {name: asdict(interval(np.array([each]))) for name, each in values.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"model": survey.result.path, "subjects": len(subjects)}
    file.write_text(json.dumps({**made, **facts}, indent=2) + "\n", encoding="utf-8")


def another(subject: Subject) -> tuple[Image.Image, Image.Image, str]:
    """A picture of another subject of the same kind, its mask (white: repaint), and its caption."""
    render = render_scene(f"inpainting/{subject.name}", "train", kind=subject.object)
    mask = Image.fromarray(np.where(render.mask, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(MARGIN))
    return Image.fromarray(render.image), mask, render.caption
