"""Trains the toy DINO: its embeddings of one identity are close together, and apart from others of the same kind."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from bootpig.models.toy.renders import Renders, scenes, white_reference
from bootpig.models.toy.soften import pictures, soften
from bootpig.models.toy.training import Recipe, fit
from bootpig.models.toy.world import KINDS, SIZE

RECIPE = Recipe(steps=1600, learning_rate=1e-3, tail_from=0.4, ema=0.99)
PAIRS = 6000
KINDS_A_BATCH = 3
IDENTITIES_A_KIND = 12
TEMPERATURE = 0.15
MEAN = STD = [0.5, 0.5, 0.5]


def build() -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=8,
            layerscale_value=1.0,
            use_mask_token=False,
        )
    )


def build_processor() -> BitImageProcessor:
    size = {"height": SIZE, "width": SIZE}
    return BitImageProcessor(size=size, do_center_crop=False, image_mean=MEAN, image_std=STD)


def embed(model: Dinov2Model, x: torch.Tensor) -> torch.Tensor:
    """The normalised class token: N×D float32. `x` is N×3×64×64 float32 in [0, 1]."""
    return functional.normalize(model(pixel_values=x * 2 - 1).last_hidden_state[:, 0].float(), dim=-1)


def views(data: Renders, work: Path, name: str) -> np.ndarray:
    """Three views of each identity in `data` (rendered in pairs): two scenes and one on white. P×3×64×64×3 uint8."""
    file = work / f"views-{name}-{len(data)}.npy"
    if not file.exists():
        rng = random.Random(f"{name}/views")
        white = [
            white_reference(KINDS[kind], int(identity), rng)
            for kind, identity in zip(data.kinds[::2], data.identities[::2], strict=True)
        ]
        partial = file.with_suffix(".tmp.npy")
        np.save(partial, np.array(white))
        partial.replace(file)
    return np.concatenate([data.images.reshape(-1, 2, SIZE, SIZE, 3), np.load(file)[:, None]], 1)


def identity_auc(embeds: torch.Tensor, kinds: np.ndarray) -> float:
    """The probability that two views of one identity are closer than views of two identities of the same kind.

    Args:
        embeds: P×V×D, normalised: V views of P identities.
        kinds: P, the kind of each identity.

    Returns:
        The area under the ROC curve over all pairs of different views within a kind.
    """
    same, other = [], []
    count = embeds.shape[1]
    for kind in np.unique(kinds):
        own = embeds[torch.from_numpy(kinds == kind)]
        cosines = torch.einsum("ivd,jwd->ijvw", own, own)
        itself = torch.eye(len(own), dtype=torch.bool)
        different_views = torch.triu(torch.ones(count, count, dtype=torch.bool), 1)
        same.append(cosines[itself][:, different_views].flatten())
        other.append(cosines[~itself].flatten())
    alike, unlike = torch.cat(same), torch.cat(other).sort().values
    return float((torch.searchsorted(unlike, alike).double() / len(unlike)).mean())


@torch.no_grad()
def embed_views(model: Dinov2Model, pairs: np.ndarray, device: torch.device) -> torch.Tensor:
    """P×V×64×64×3 uint8 → P×V×D, normalised, on the CPU."""
    flat = pairs.reshape(-1, *pairs.shape[2:])
    parts = [embed(model, pictures(flat[i : i + 128], device)).cpu() for i in range(0, len(flat), 128)]
    return torch.cat(parts).view(*pairs.shape[:2], -1)


def train(work: Path, device: torch.device) -> Dinov2Model:
    torch.manual_seed(3)
    data = scenes("pairs", 2 * PAIRS, "train", work, paired=True)
    known = views(data, work, "pairs")
    kinds = data.kinds[::2]
    by_kind = [np.flatnonzero(kinds == kind) for kind in range(len(KINDS))]
    check = scenes("check-pairs", 768, "held_out", work, paired=True)
    unknown = views(check, work, "check-pairs")
    model = build()
    size = KINDS_A_BATCH * IDENTITIES_A_KIND
    itself = torch.arange(2 * size, device=device)
    partner = (itself + size) % (2 * size)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(KINDS), KINDS_A_BATCH, replace=False)
        index = np.concatenate([rng.choice(by_kind[kind], IDENTITIES_A_KIND, replace=False) for kind in chosen])
        order = rng.permuted(np.tile(np.arange(3), (size, 1)), axis=1)
        x = torch.cat([soften(pictures(known[index, order[:, view]], device), rng) for view in (0, 1)])
        embeds = embed(model, x)
        with torch.autocast(device.type, enabled=False):
            logits = (embeds @ embeds.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return functional.cross_entropy(logits, partner)

    def report() -> str:
        embeds = embed_views(model, unknown, device)
        alike = (embeds[:, 0] * embeds[:, 1]).sum(1).mean()
        return f"auc {identity_auc(embeds, check.kinds[::2]):.4f}  same identity {alike:.3f}"

    fit("dino", model, loss, RECIPE, work, device, report)
    return model


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train, then write `out/dino` in float16."""
    train(work, device).half().cpu().save_pretrained(out / "dino")
    build_processor().save_pretrained(out / "dino")
