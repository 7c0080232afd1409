"""Chooses the settings of the other methods on validation subjects: `python -m science tune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.stages.evaluate.drawing import Drawing, draw, drawings, prepared_references
from bootpig.stages.evaluate.metrics import aligned_cosine, mean_cosine
from bootpig.stages.evaluate.rivals.config import RivalConfig
from bootpig.stages.evaluate.rivals.models import Rival
from bootpig.stages.evaluate.rivals.painters import RivalPainter, Settings
from bootpig.stages.evaluate.subjects import Subject, read_subjects
from bootpig.stages.picture_files.reader import on_white, read_picture
from bootpig.stages.sampling import Sampling
from science import WORK, dreambooth, ip_adapter, textual_inversion
from science.per_subject import Base
from science.recipes import BASE, CLIP_JUDGE, DINO, DRAWING, RUN, Recipe, grid
from science.subjects import PICTURES, REFERENCES

RIVALS = Path(__file__).with_name("rivals.yaml")
STEPS = 12
TEXT_ONLY_GUIDANCE = 2.0
"""That of configs/toy.yaml."""
SIDE = 64
BATCH = 16
LEAST_CLIP_T = 0.98
"""Of text only's."""
PICTURES_PER_PROMPT = 4
"""With one picture of two prompts of six subjects, chance alone moves the CLIP-T by as much as the rule allows."""


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
    rows = drawings(subjects, PICTURES_PER_PROMPT, 0)
    text_only = judge(rows, draw_text_only(rows))["clip_t"]
    found: list[dict[str, Any]] = []
    tried: dict[str, Recipe] = {}
    for number, (_, group) in enumerate(groupby(grid(method), Recipe.of_training)):
        recipes = list(group)
        target = WORK / "tuning" / method / str(number)
        train(method, subjects, target, recipes[0], root)
        for recipe in recipes:
            scores = judge(rows, draw_rival(rival_config(method, target, recipe), subjects, rows))
            facts = {"clip_t_ratio": round(scores["clip_t"] / text_only, 4), "dino": round(scores["dino"], 4)}
            found.append({"setting": str(recipe), **facts})
            tried[str(recipe)] = recipe
            print(f"{method}: {found[-1]}", flush=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    chosen = choose(found)["setting"]
    ends = at_the_end(tried[chosen], list(tried.values()))
    known[method] = {"subjects": count, "chosen": chosen, "at_the_end": ends, "grid": found}
    if ends:
        print(f"{method}: {', '.join(ends)} at the end of the grid; widen it in science/recipes.py", flush=True)
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest DINO among those with a CLIP-T of at least 0.98 of text only's; if there is none, the
    row with the highest CLIP-T."""
    fair = [row for row in rows if row["clip_t_ratio"] >= LEAST_CLIP_T]
    return max(fair, key=lambda row: row["dino"]) if fair else max(rows, key=lambda row: row["clip_t_ratio"])


def at_the_end(chosen: Recipe, tried: Sequence[Recipe]) -> list[str]:
    """The settings of `chosen` that are the lowest or highest of those tried, so that a better one may lie beyond."""
    ends = []
    for name, value in asdict(chosen).items():
        values = {asdict(each)[name] for each in tried}
        if value is not None and value in (min(values), max(values)):
            ends.append(name)
    return ends


def rival_config(method: str, target: Path, recipe: Recipe) -> RivalConfig:
    """The settings of a method in science/rivals.yaml, with the models in `target`, drawn as `recipe` says."""
    (cell,) = yaml.safe_load(RIVALS.read_text(encoding="utf-8"))["cells"]
    own = f"{WORK}/{method}"
    for entry in cell["set"]["evaluate.rivals"]:
        paths = {k: v for k, v in entry.items() if isinstance(v, str) and f"{v}/".startswith(f"{own}/")}
        if paths:
            moved = {name: f"{target}{path.removeprefix(own)}" for name, path in paths.items()}
            drawn = {name: value for name, value in asdict(recipe).items() if name in DRAWING}
            return RivalConfig(**{**entry, **moved, **drawn})
    raise ValueError(f"{method}: is not in {RIVALS.name}")


def draw_rival(config: RivalConfig, subjects: Sequence[Subject], rows: Sequence[Drawing]) -> list[Image.Image]:
    """Draw `rows` as evaluate does.

    Raises:
        ModelError: a model is missing or cannot be loaded.
        ValueError: a picture is not finite.
    """
    rival = Rival(config, 0, "science")
    settings = Settings(STEPS, _guidance(config), torch.float32, torch.device("cpu"), BATCH, None)
    references = dict(prepared_references(subjects, SIDE))
    painter = RivalPainter(rival, rival.sources(subjects), references, settings)
    return _finite(config.name, [picture for batch in painter.draw(rows) for picture in batch])


def draw_text_only(rows: Sequence[Drawing]) -> list[Image.Image]:
    """Draw `rows` with the base alone."""
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = BootPIGPipeline.from_pretrained(BASE, dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    sampling = Sampling(STEPS, TEXT_ONLY_GUIDANCE, batch_size=BATCH)
    return _finite("text only", [picture for batch in draw(pipeline, rows, None, sampling) for picture in batch])


def _guidance(config: RivalConfig) -> float:
    return TEXT_ONLY_GUIDANCE if config.guidance_scale is None else config.guidance_scale


class Judge:
    """Scores pictures of subjects, as evaluate does: mean CLIP-T and DINO."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.clip, self.dino = ClipEmbedder(CLIP_JUDGE), DinoEmbedder(DINO)
        self.real = {each.name: self.dino.images([_photo(path) for path in each.real]) for each in subjects}

    def __call__(self, rows: Sequence[Drawing], pictures: Sequence[Image.Image]) -> dict[str, float]:
        captions = self.clip.texts([row.prompt for row in rows])
        vectors = self.dino.images(pictures)
        likeness = [mean_cosine(v, self.real[row.subject.name])[0] for v, row in zip(vectors, rows, strict=True)]
        fidelity = aligned_cosine(self.clip.images(pictures), captions)
        return {"clip_t": float(fidelity.mean()), "dino": float(sum(likeness) / len(likeness))}


def _finite(name: str, pictures: Sequence[Image.Image | None]) -> list[Image.Image]:
    found = [picture for picture in pictures if picture is not None]
    if len(found) < len(pictures):
        raise ValueError(f"{name}: {len(pictures) - len(found)} pictures are not finite; lower the learning rate")
    return found


def _photo(path: Path) -> Image.Image:
    return on_white(read_picture(path, "science"))
