"""Trains the toy CLIP that judges pictures in `evaluate`: it knows colours and patterns, besides kinds and scenes.

The toy CLIP of the pipeline learns from captions that never name a subject's look, so its pictures are embedded
without it: two pictures of one subject in different scenes are further apart than two subjects in one scene. This one
learns from captions of two forms: the pipeline's own, and captions that name a random part of the look, with or
without place and scene. A batch has few kinds, so that the look decides which caption is right. Then it learns to
tell captions from those that are wrong in a single fact of the look, so that each of them counts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor, OwlViTForObjectDetection

from bootpig.models.toy.clip import build, build_processor, caption_indices, judge, take_pictures_from
from bootpig.models.toy.looks import ABSENT, COLOURS, FACTS, LOOK, PATTERNS, PLAIN, UNSAID, facts_of, phrase
from bootpig.models.toy.renders import Renders, scenes
from bootpig.models.toy.soften import pictures, soften
from bootpig.models.toy.tokens import all_captions
from bootpig.models.toy.training import Recipe, fit
from bootpig.models.toy.world import KINDS

RECIPE = Recipe(steps=1200, learning_rate=7e-4, tail_from=0.4, ema=0.99)
HARD_RECIPES = (
    Recipe(steps=800, learning_rate=6e-4, warmup=50, tail_from=0.3, ema=0.99),
    Recipe(steps=2800, learning_rate=8e-4, warmup=50, tail_from=0.3, ema=0.998),
)
"""With wrong captions, twice: the accents are learned late, from another start of the learning rate."""
HARD_WEIGHT = 3.0
"""Weight of captions that name the look, relative to the pipeline's, once there are wrong ones among them."""
WRONG_CAPTIONS = 2
"""Per picture, each wrong in one fact."""
PICTURES = 12_000
KINDS_A_BATCH = 4
PICTURES_A_KIND = 16
TOLD = {"position": 0.25, "scene": 0.25, "colour": 0.85, "pattern": 0.85, "second": 0.85, "accent": 0.7}
"""How often a caption of the second form says each fact."""


def vocabulary() -> list[str]:
    """Captions with every word that `phrase` knows."""
    looks = [[0, UNSAID, UNSAID, colour, 4, colour, colour] for colour in range(len(COLOURS))]
    looks += [
        [kind, UNSAID, UNSAID, 0, pattern, 1, 2] for kind in range(len(KINDS)) for pattern in range(len(PATTERNS))
    ]
    return all_captions() + [phrase(look) for look in looks]


def partly(facts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leave a random part of each picture's facts unsaid: N×7 → N×7. A pattern's colour needs the pattern."""
    told = rng.random(facts.shape) < np.array([TOLD.get(fact, 1.0) for fact in FACTS])
    told[:, FACTS.index("second")] &= told[:, FACTS.index("pattern")]
    return np.where(told, facts, UNSAID)


def altered(facts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Captions of the whole look, without place, that are wrong in one visible fact: N×7 → N×7."""
    said = facts.copy()
    said[:, [FACTS.index("position"), FACTS.index("scene")]] = UNSAID
    pattern = FACTS.index("pattern")
    for row in said:
        seen = [column for column in map(FACTS.index, LOOK) if row[column] != ABSENT]
        if row[pattern] == PLAIN:
            seen.remove(pattern)  # a pattern has a colour, which is another fact
        column = rng.choice(seen)
        if column == pattern:  # to another one that is not plain
            row[column] = 1 + (row[column] - 1 + rng.integers(1, len(PATTERNS) - 1)) % (len(PATTERNS) - 1)
        else:
            row[column] = (row[column] + rng.integers(1, len(COLOURS))) % len(COLOURS)
    return said


def matches(facts: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Whether caption j is true of picture i: N×7 all facts, M×7 said facts → N×M bool."""
    return ((said == UNSAID) | (facts[:, None] == said)).all(-1)


def contrast(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """CLIP's loss where several captions can be true of a picture: each direction aims at all that match, equally.

    Args:
        logits: N×M float32, of N pictures and M captions.
        positive: N×M float32, 1 where the caption is true; at least one in each row. Captions that are true of no
            picture count as wrong ones for all pictures.

    Returns:
        A scalar.
    """
    by_picture = functional.cross_entropy(logits, positive / positive.sum(1, keepdim=True))
    true = positive.any(0)
    aims = positive.T[true]
    by_caption = functional.cross_entropy(logits.T[true], aims / aims.sum(1, keepdim=True))
    return (by_picture + by_caption) / 2


def subject_auc(embeds: torch.Tensor, kinds: np.ndarray, backdrops: np.ndarray) -> float:
    """The probability that one subject in two scenes is closer than two subjects of a kind in the same scene.

    Args:
        embeds: P×2×D, normalised: two pictures of each of P subjects.
        kinds: P, the kind of each subject.
        backdrops: P×2, the scene of each picture.

    Returns:
        The area under the ROC curve over all such pairs.
    """
    alike = (embeds[:, 0] * embeds[:, 1]).sum(1)[torch.from_numpy(backdrops[:, 0] != backdrops[:, 1])]
    subject, kind, scene = np.repeat(np.arange(len(kinds)), 2), np.repeat(kinds, 2), backdrops.flatten()
    hard = (kind[:, None] == kind) & (scene[:, None] == scene) & (subject[:, None] < subject)
    unlike = (embeds.flatten(0, 1) @ embeds.flatten(0, 1).T)[torch.from_numpy(hard)].sort().values
    return float((torch.searchsorted(unlike, alike).double() / len(unlike)).mean())


@torch.no_grad()
def embed_pictures(model: CLIPModel, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """N×64×64×3 uint8 → N×D float32, normalised, on the CPU."""
    parts = []
    for begin in range(0, len(images), 128):
        x = pictures(images[begin : begin + 128], device) * 2 - 1
        parts.append(model.visual_projection(model.vision_model(pixel_values=x).pooler_output).float().cpu())
    return functional.normalize(torch.cat(parts), dim=-1)


def train(work: Path, out: Path, device: torch.device) -> tuple[CLIPModel, CLIPProcessor]:
    torch.manual_seed(4)
    data = scenes("base", PICTURES, "train", work)
    facts = _facts(data, work, "base")
    by_kind = [np.flatnonzero(data.kinds == kind) for kind in range(len(KINDS))]
    held_out = scenes("check", 512, "held_out", work)
    check = scenes("check-pairs", 768, "held_out", work, paired=True)
    processor = build_processor(vocabulary())
    model = build(len(processor.tokenizer))
    take_pictures_from(OwlViTForObjectDetection.from_pretrained(out / "owlvit", dtype=torch.float32), model)

    def embed_texts(texts: list[str]) -> torch.Tensor:
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt").to(device)
        pooled = model.text_model(**tokens).pooler_output
        return functional.normalize(model.text_projection(pooled).float(), dim=-1)

    plain = np.array([fact in ("kind", "position", "scene") for fact in FACTS])

    def compare(rng: np.random.Generator, wrong: int, weight: float) -> torch.Tensor:
        """The loss of a step. `wrong` is the number of altered captions per picture, `weight` that of looks."""
        chosen = rng.choice(len(KINDS), KINDS_A_BATCH, replace=False)
        index = np.concatenate([rng.choice(by_kind[kind], PICTURES_A_KIND, replace=False) for kind in chosen])
        x = soften(pictures(data.images[index], device), rng) * 2 - 1
        known = facts[index]
        looks = [partly(known, rng), *(altered(known, rng) for _ in range(wrong))]
        forms = [np.unique(said, axis=0) for said in (np.where(plain, known, UNSAID), np.concatenate(looks))]
        image_embeds = functional.normalize(
            model.visual_projection(model.vision_model(pixel_values=x).pooler_output).float(), dim=-1
        )
        text_embeds = embed_texts([phrase(said) for said in np.concatenate(forms)]).split([len(said) for said in forms])
        with torch.autocast(device.type, enabled=False):
            scale = model.logit_scale.clamp(max=4.6).exp()
            by_form = [
                contrast(
                    image_embeds @ embeds.T * scale, torch.from_numpy(matches(known, said)).to(device, torch.float32)
                )
                for embeds, said in zip(text_embeds, forms, strict=True)
            ]
        return (by_form[0] + weight * by_form[1]) / (1 + weight)

    @torch.no_grad()
    def report() -> str:
        image_embeds = embed_pictures(model, held_out.images, device)
        text_embeds = embed_texts(all_captions()).cpu()
        truth = {"kind": held_out.kinds, "position": held_out.positions, "scene": held_out.scenes}
        right = {k: (judge(image_embeds, text_embeds, k).numpy() == v).mean() for k, v in truth.items()}
        match = (image_embeds * text_embeds[caption_indices(held_out)]).sum(1).mean()
        pairs = embed_pictures(model, check.images, device).view(len(check) // 2, 2, -1)
        auc = subject_auc(pairs, check.kinds[::2], check.scenes.reshape(-1, 2))
        alike = (pairs[:, 0] * pairs[:, 1]).sum(1)
        shares = "  ".join(f"{axis} {share:.3f}" for axis, share in right.items())
        return f"{shares}  cosine {match:.3f}  auc {auc:.4f}  same subject {alike.mean():.3f}"

    fit("clip-judge", model, lambda rng: compare(rng, 0, 1.0), RECIPE, work, device, report)
    hard = partial(compare, wrong=WRONG_CAPTIONS, weight=HARD_WEIGHT)
    for name, recipe in zip(("clip-judge-hard", "clip-judge-harder"), HARD_RECIPES, strict=True):
        fit(name, model, hard, recipe, work, device, report)
    return model, processor


def _facts(data: Renders, work: Path, name: str) -> np.ndarray:
    file = work / f"facts-{name}-{len(data)}.npy"
    if not file.exists():
        unfinished = file.with_suffix(".tmp.npy")
        np.save(unfinished, facts_of(data.kinds, data.positions, data.scenes, data.identities))
        unfinished.replace(file)
    return np.load(file)


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train from `out/owlvit`, then write `out/clip-judge` in float16."""
    model, processor = train(work, out, device)
    model.half().cpu().save_pretrained(out / "clip-judge")
    processor.save_pretrained(out / "clip-judge")
