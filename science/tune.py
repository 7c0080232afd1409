"""Chooses the settings of the other methods on validation subjects: `python -m science tune`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from PIL import Image

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.models.toy.subject_folder import PICTURES
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
from science.recipes import (
    BASE,
    CLIP_JUDGE,
    DINO,
    DRAWING,
    PRIOR_LOSS_WEIGHTS,
    RATES,
    RECIPES,
    RUN,
    UPDATES,
    Recipe,
    next_rate,
)
from science.recipes import drawings as drawn_recipes
from science.subjects import REFERENCES

Setting = TypeVar("Setting")

RIVALS = Path(__file__).with_name("rivals.yaml")
STEPS = 12
TEXT_ONLY_GUIDANCE = 2.0
"""That of configs/toy.yaml."""
SIDE = 64
BATCH = 16
IMAGES_PER_PROMPT = 3
"""With two captions a subject, 36 pictures of six subjects judge a recipe."""
LEAST_CLIP_T = 0.978
"""Of text only's: what BootPIG of configs/toy.yaml has on all validation subjects by the same judge. Its guidance
scales were chosen with at least 0.98 by the pipeline's CLIP."""


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
    """Choose the settings of a method on `count` validation subjects, and write all scores and the choice to `file`.

    First the weight of the class, where the method has one, then the learning rate, then the number of updates, each
    with all ways to draw.
    """
    subjects = subjects_of(WORK / "validation", count)
    judge = Judge(subjects)
    rows = drawings(subjects, IMAGES_PER_PROMPT, 0)
    text_only = judge(rows, draw_text_only(rows))["clip_t"]
    found: list[tuple[Recipe, dict[str, float]]] = []

    def attempt(trained: Recipe) -> None:
        if trained.of_training() in [recipe.of_training() for recipe, _ in found]:
            return
        target = WORK / "tuning" / method / "-".join(f"{value:g}" for value in trained.of_training().values())
        train(method, subjects, target, trained, root)
        for recipe in drawn_recipes(method, trained):
            scores = judge(rows, draw_rival(rival_config(method, target, recipe), subjects, rows))
            facts = {"clip_t_ratio": round(scores["clip_t"] / text_only, 4), "dino": round(scores["dino"], 4)}
            found.append((recipe, facts))
            print(f"{method}: {recipe}: {facts}", flush=True)

    start = RECIPES[method]
    for weight in PRIOR_LOSS_WEIGHTS.get(method, ()):
        attempt(replace(start, prior_loss_weight=weight))
    if found:
        start = replace(start, prior_loss_weight=choose(found).prior_loss_weight)
    rates = list(RATES[method])
    for rate in rates:  # grows while the best is the first or the last
        attempt(replace(start, learning_rate=rate))
        if rate == rates[-1] and (more := next_rate(rates, choose(found).learning_rate)) is not None:
            rates.append(more)
    best = choose(found)
    for updates in UPDATES[method]:
        attempt(replace(best, updates=updates))
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    tried = [{"setting": str(recipe), **facts} for recipe, facts in found]
    known[method] = {"subjects": count, "chosen": str(choose(found)), "grid": tried}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def choose(found: Sequence[tuple[Setting, Mapping[str, float]]]) -> Setting:
    """The setting with the highest DINO among those with a CLIP-T of at least `LEAST_CLIP_T` of text only's; if none
    has, that with the highest CLIP-T."""
    fair = [each for each in found if each[1]["clip_t_ratio"] >= LEAST_CLIP_T]
    key = "dino" if fair else "clip_t_ratio"
    return max(fair or found, key=lambda each: each[1][key])[0]


def rival_config(method: str, target: Path, recipe: Recipe) -> RivalConfig:
    """The settings of a method in science/rivals.yaml, with the models in `target`, drawn as `recipe` says."""
    cells = yaml.safe_load(RIVALS.read_text(encoding="utf-8"))["cells"]
    own = f"{WORK}/{method}"
    for entry in (entry for cell in cells for entry in cell["set"]["evaluate.rivals"]):
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
