"""Chooses the settings of the other methods on validation subjects: `python -m science tune`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.stages.evaluate.drawing import Drawing, drawings
from bootpig.stages.evaluate.metrics import aligned_cosine, mean_cosine
from bootpig.stages.evaluate.prompts import with_phrase
from bootpig.stages.evaluate.subjects import Subject, read_subjects
from bootpig.stages.picture_files.reader import on_white, read_picture
from science import WORK, dreambooth, ip_adapter, textual_inversion
from science.per_subject import Base
from science.recipes import BASE, CLIP, DINO, RUN, Recipe, grid
from science.subjects import PICTURES, REFERENCES

STEPS = 12
LEAST_CLIP_T = 0.98
"""Of text only's."""


def subjects_of(folder: Path, count: int | None = None) -> list[Subject]:
    """The subjects of a folder, or `count` of them, spread evenly by name."""
    found = read_subjects(folder, (), REFERENCES, "science", PICTURES)
    return found if count is None else [found[number * len(found) // count] for number in range(count)]


def train(method: str, subjects: Sequence[Subject], target: Path, recipe: Recipe, root: str | None) -> None:
    """Train `method`, one of those in `RECIPES`, into the folder `target`. What is there already stays."""
    if method == "ip-adapter":
        ip_adapter.train(target, recipe, config=RUN, root=root)
    elif method == "textual-inversion":
        textual_inversion.train(Base.load(BASE), subjects, target, recipe)
    else:
        dreambooth.train(Base.load(BASE), subjects, target, recipe, lora=method == "dreambooth-lora")


def tune(method: str, count: int, root: str | None, file: Path) -> None:
    """Try all recipes of a method on `count` validation subjects, and write their scores and the choice to `file`."""
    subjects = subjects_of(WORK / "validation", count)
    judge = Judge(subjects)
    base = _draw_all(subjects, lambda subject: (_pipeline(), subject.prompts, {}), 2.0)
    text_only = judge(base)["clip_t"]
    rows: list[dict[str, Any]] = []
    for number, (_, group) in enumerate(groupby(grid(method), Recipe.of_training)):
        recipes = list(group)
        target = WORK / "tuning" / method / str(number)
        train(method, subjects, target, recipes[0], root)
        for recipe in recipes:
            scores = judge(_draw_all(subjects, _drawer(method, target, recipe), recipe.guidance_scale))
            facts = {"clip_t_ratio": round(scores["clip_t"] / text_only, 4), "dino": round(scores["dino"], 4)}
            rows.append({"setting": str(recipe), **facts})
            print(f"{method}: {rows[-1]}", flush=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[method] = {"subjects": count, "chosen": choose(rows)["setting"], "grid": rows}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest DINO among those with a CLIP-T of at least 0.98 of text only's; if there is none, the
    row with the highest CLIP-T."""
    fair = [row for row in rows if row["clip_t_ratio"] >= LEAST_CLIP_T]
    return max(fair, key=lambda row: row["dino"]) if fair else max(rows, key=lambda row: row["clip_t_ratio"])


class Judge:
    """Scores pictures of subjects, as evaluate does: mean CLIP-T and DINO over subjects."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.clip, self.dino = ClipEmbedder(CLIP), DinoEmbedder(DINO)
        self.real = {each.name: self.dino.images([_photo(path) for path in each.real]) for each in subjects}

    def __call__(self, drawn: Sequence[tuple[Drawing, Image.Image]]) -> dict[str, float]:
        pictures = [picture for _, picture in drawn]
        captions = self.clip.texts([drawing.prompt for drawing, _ in drawn])
        vectors = self.dino.images(pictures)
        likeness = [mean_cosine(v, self.real[d.subject.name])[0] for v, (d, _) in zip(vectors, drawn, strict=True)]
        fidelity = aligned_cosine(self.clip.images(pictures), captions)
        return {"clip_t": float(fidelity.mean()), "dino": float(sum(likeness) / len(likeness))}


Drawer = Callable[[Subject], tuple[StableDiffusionPipeline, Sequence[str], dict[str, Any]]]
"""A subject's pipeline, prompts and further arguments."""


@torch.no_grad()
def _draw_all(subjects: Sequence[Subject], drawer: Drawer, guidance_scale: float) -> list[tuple[Drawing, Image.Image]]:
    """One picture of each caption, from the noise that evaluate uses."""
    found = []
    for subject in subjects:
        rows = drawings([subject], 1, 0)
        pipeline, prompts, more = drawer(subject)
        side = pipeline.unet.config.sample_size
        shape = (1, pipeline.unet.config.in_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(row.seed)) for row in rows]
        images = pipeline(
            list(prompts), num_inference_steps=STEPS, guidance_scale=guidance_scale, latents=torch.cat(noise), **more
        ).images
        found += list(zip(rows, images, strict=True))
    return found


def _drawer(method: str, target: Path, recipe: Recipe) -> Drawer:
    phrase = textual_inversion.PHRASE if method == "textual-inversion" else dreambooth.PHRASE
    adapter = _pipeline() if method == "ip-adapter" else None
    if adapter is not None:
        adapter.load_ip_adapter(target, subfolder="", weight_name=ip_adapter.FILE)
        adapter.set_ip_adapter_scale(recipe.scale)

    def draw(subject: Subject) -> tuple[StableDiffusionPipeline, Sequence[str], dict[str, Any]]:
        if adapter is not None:
            picture = _photo(subject.references[0])
            return adapter, subject.prompts, {"ip_adapter_image": [picture] * len(subject.prompts)}
        folder = target / subject.name
        named = [with_phrase(template, phrase.replace("{class}", subject.object)) for template in subject.templates]
        if method == "dreambooth":
            return _pipeline(str(folder)), named, {}
        pipeline = _pipeline()
        if method == "dreambooth-lora":
            pipeline.load_lora_weights(folder)
        else:
            pipeline.load_textual_inversion(folder / textual_inversion.FILE, token=textual_inversion.TOKEN)
        return pipeline, named, {}

    return draw


def _pipeline(folder: str = BASE) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _photo(path: Path) -> Image.Image:
    return on_white(read_picture(path, "science"))
