"""Trains the toy SAM to predict the subject's mask, and the mask's quality, from a box prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch.nn import functional

from bootpig.models.toy.renders import scenes
from bootpig.models.toy.sam_model import IMAGE_SIZE, build_sam_vit_toy
from bootpig.models.toy.soften import pictures, soften
from bootpig.models.toy.training import Recipe, fit

RECIPE = Recipe(steps=1200, learning_rate=1e-3, tail_from=0.4, ema=0.99)
BATCH = 24
JITTER = 3.0
"""Maximum shift of each edge of a box prompt in pixels, similar to the detector's error."""


def jittered(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each edge of N×4 boxes (xyxy, pixels) by up to `JITTER`, within the picture. Returns float32."""
    moved = boxes + rng.uniform(-JITTER, JITTER, boxes.shape)
    return np.clip(moved, 0, IMAGE_SIZE).astype(np.float32)


def predict(sam: Sam, x: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks of each picture for its box.

    Args:
        x: N×3×64×64 float32 in [0, 1].
        boxes: N×4 float32, xyxy pixels.

    Returns:
        Mask logits N×4×64×64 and predicted IoU N×4.
    """
    embeddings = sam.image_encoder(sam.preprocess(x * 255))
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    place = sam.prompt_encoder.get_dense_pe()

    def decode(
        embedding: torch.Tensor, prompt: torch.Tensor, no_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masks, quality = sam.mask_decoder.predict_masks(embedding[None], place, prompt[None], no_mask[None])
        return masks[0], quality[0]

    # the decoder takes one picture with many prompts, but here are many pictures with one prompt each
    logits, quality = torch.vmap(decode)(embeddings, sparse, dense)
    return logits, quality


def masks_iou(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boolean masks over the last two axes. Two empty masks give 0."""
    union = (predicted | true).sum((-2, -1))
    return (predicted & true).sum((-2, -1)) / union.clamp(min=1)


@torch.no_grad()
def mean_iou(sam: Sam, images: np.ndarray, boxes: np.ndarray, masks: np.ndarray, device: torch.device) -> float:
    """Mean IoU of the single-mask output over NHWC uint8 pictures prompted with N×4 xyxy boxes."""
    total = 0.0
    for begin in range(0, len(images), 64):
        part = slice(begin, begin + 64)
        prompts = torch.from_numpy(boxes[part].astype(np.float32)).to(device)
        logits, _ = predict(sam, pictures(images[part], device), prompts)
        total += masks_iou(logits[:, 0] > 0, torch.from_numpy(masks[part]).to(device)).sum().item()
    return total / len(images)


def train(work: Path, device: torch.device) -> Sam:
    torch.manual_seed(5)
    data = scenes("base", 24_000, "train", work)
    held_out = scenes("check", 512, "held_out", work)
    sam = build_sam_vit_toy()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        index = rng.integers(len(data), size=BATCH)
        x = soften(pictures(data.images[index], device), rng)
        boxes = torch.from_numpy(jittered(data.boxes[index], rng)).to(device)
        truth = torch.from_numpy(data.masks[index]).to(device)[:, None]
        logits, quality = (tensor.float() for tensor in predict(sam, x, boxes))
        target = truth.expand_as(logits).float()
        chance = logits.sigmoid()
        dice = 1 - (2 * (chance * target).sum((-2, -1)) + 1) / (chance.sum((-2, -1)) + target.sum((-2, -1)) + 1)
        graded = functional.mse_loss(quality, masks_iou(logits > 0, truth))
        return functional.binary_cross_entropy_with_logits(logits, target) + dice.mean() + graded

    def report() -> str:
        part = slice(0, 128)
        return f"iou {mean_iou(sam, held_out.images[part], held_out.boxes[part], held_out.masks[part], device):.3f}"

    fit("sam", sam, loss, RECIPE, work, device, report)
    return sam


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train, then write `out/sam/sam_vit_toy.safetensors` in float16."""
    state = train(work, device).state_dict()
    (out / "sam").mkdir(parents=True, exist_ok=True)
    weights = {key: tensor.to("cpu", torch.float16).contiguous() for key, tensor in state.items()}
    save_file(weights, out / "sam" / "sam_vit_toy.safetensors", metadata={"format": "pt"})
