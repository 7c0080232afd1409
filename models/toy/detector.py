"""Trains the toy OWL-ViT to find a box for a phrase that names the subject, and none for other phrases.

First the whole model is trained on pictures and simple phrases. Then the text model alone learns to ignore adjectives
and unknown words, so that `a faded zigzag mug` gives the same query as `a mug`.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
from transformers import CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

from bootpig.models.toy.phrases import ADJECTIVES, STRANGERS, rich_phrase, simple_phrase, strange_noun
from bootpig.models.toy.renders import scenes
from bootpig.models.toy.scenes import render_backdrop
from bootpig.models.toy.soften import pictures, soften
from bootpig.models.toy.tokens import all_captions, build_tokenizer
from bootpig.models.toy.training import Recipe, fit
from bootpig.models.toy.world import KINDS, SCENES, SIZE, with_article

RECIPE = Recipe(steps=3500, learning_rate=1e-3, tail_from=0.4, ema=0.99)
BATCH = 32
READING = Recipe(steps=1500, learning_rate=1e-3, tail_from=0.4, ema=0.99)
PHRASES = 64
EMPTY = 2
"""Pictures per batch that show a scene without a subject."""
PATCH = 8
MAX_TOKENS = 32
MEAN = STD = [0.5, 0.5, 0.5]


def build_processor() -> OwlViTProcessor:
    words = [*all_captions(), " ".join(ADJECTIVES), " ".join(STRANGERS)]
    image_processor = OwlViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
    )
    return OwlViTProcessor(image_processor, build_tokenizer(words, MAX_TOKENS))


def build(tokens: int) -> OwlViTForObjectDetection:
    """An untrained OWL-ViT with a vocabulary of `tokens` entries, of which the last is the end token."""
    text = {
        "vocab_size": tokens,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": tokens - 1,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    model = OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=96))
    for layer in (*model.class_head.modules(), *model.box_head.modules()):
        if isinstance(layer, torch.nn.Linear):  # transformers initialises with std 1: saturated
            layer.reset_parameters()
    torch.nn.init.constant_(model.class_head.logit_scale.bias, 8.0)
    torch.nn.init.constant_(model.class_head.logit_shift.bias, -0.5)  # at first finds nothing
    # only used by OWL-ViT's contrastive loss, not for detection
    model.owlvit.visual_projection.requires_grad_(False)
    model.owlvit.logit_scale.requires_grad_(False)
    return model


class Reader(nn.Module):
    """The detector's text model: tokens of a phrase → normalised query that image patches are compared with."""

    def __init__(self, model: OwlViTForObjectDetection) -> None:
        super().__init__()
        self.text_model = model.owlvit.text_model
        self.text_projection = model.owlvit.text_projection

    def forward(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.normalize(self.text_projection(self.text_model(**tokens).pooler_output).float(), dim=-1)


def find(
    model: OwlViTForObjectDetection, x: torch.Tensor, tokens: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits N×64×Q and boxes N×64×4 (cxcywh, fractions of the side), with the same Q queries for every picture.

    Made of the parts of `OwlViTForObjectDetection.forward`, which would run the text model once per picture.

    Args:
        x: N×3×64×64 float32 in [0, 1].
        tokens: `input_ids` and `attention_mask`, Q×L.
    """
    feature_map = model.image_embedder(pixel_values=x * 2 - 1)[0]
    features = feature_map.flatten(1, 2)
    queries = Reader(model)(tokens)
    logits = model.class_predictor(features, queries.expand(len(x), -1, -1))[0]
    return logits.float(), model.box_predictor(features.float(), feature_map)


def empty_scenes(count: int) -> np.ndarray:
    """Scenes without a subject: N×64×64×3 uint8."""
    rng = random.Random("detector/empty")
    painted = (render_backdrop(rng.choice(SCENES), rng) for _ in range(count))
    return np.stack([np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)) for picture in painted])


def teach_words(model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, work: Path, device: torch.device) -> None:
    """Train the text model, in place, to give every phrase the query of its plain noun."""
    reader = Reader(model)
    plain = copy.deepcopy(reader).to(device).eval()

    def read(phrases: list[str], side: Reader) -> torch.Tensor:
        tokens = tokenizer(phrases, padding=True, truncation=True, return_tensors="pt").to(device)
        return side(dict(tokens))

    with torch.no_grad():
        strange = read([with_article(noun) for noun in STRANGERS], plain).mean(0, keepdim=True)
        queries = torch.cat(
            [read([with_article(kind) for kind in KINDS], plain), functional.normalize(strange, dim=-1)]
        )

    def loss(rng: np.random.Generator) -> torch.Tensor:
        asked = rng.integers(2 * len(KINDS), size=PHRASES).clip(max=len(KINDS))  # about half are strangers
        nouns = [KINDS[index] if index < len(KINDS) else strange_noun(rng) for index in asked]
        given = read([(rich_phrase if rng.random() < 0.8 else simple_phrase)(noun, rng) for noun in nouns], reader)
        index = torch.from_numpy(asked).to(device)
        with torch.autocast(device.type, enabled=False):
            cosines = given @ queries.T
        return functional.cross_entropy(cosines * 20, index) + (1 - cosines[torch.arange(PHRASES), index]).mean()

    fit("detector-reading", reader, loss, READING, work, device)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Convert …×4 boxes from cxcywh to xyxy."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def train(work: Path, device: torch.device) -> tuple[OwlViTForObjectDetection, OwlViTProcessor]:
    torch.manual_seed(4)
    data = scenes("base", 24_000, "train", work)
    empty = empty_scenes(512)
    processor = build_processor()
    tokenizer = processor.tokenizer
    model = build(len(tokenizer))
    grid = torch.stack(torch.meshgrid(*[(torch.arange(SIZE // PATCH) + 0.5) / (SIZE // PATCH)] * 2, indexing="xy"), -1)
    patches = grid.reshape(-1, 2).to(device)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        index = rng.integers(len(data), size=BATCH)
        nothing = empty[rng.integers(len(empty), size=EMPTY)]
        x = soften(pictures(np.concatenate([data.images[index], nothing]), device), rng)
        nouns = [*KINDS, *rng.choice(STRANGERS, 6, replace=False)]
        tokens = tokenizer([simple_phrase(noun, rng) for noun in nouns], padding=True, return_tensors="pt").to(device)
        logits, boxes = find(model, x, dict(tokens))

        true = torch.from_numpy(data.boxes[index]).to(device).float()[:, None] / SIZE  # N×1×4 xyxy
        # the patches in the middle half of the subject are its positives
        centre, half = (true[..., :2] + true[..., 2:]) / 2, (true[..., 2:] - true[..., :2]) / 4
        answers = ((patches - centre).abs() <= half.clamp(min=0.5 * PATCH / SIZE)).all(-1)  # N×64
        wanted = torch.zeros_like(logits)
        rows, places = answers.nonzero(as_tuple=True)
        kinds = torch.from_numpy(data.kinds[index]).to(device)
        wanted[rows, places, kinds[rows]] = 1
        named = sigmoid_focal_loss(logits, wanted, alpha=0.5, gamma=2, reduction="sum") / len(rows)
        found, expected = corners(boxes.float()[rows, places]), true[rows, 0]
        placed = 2 * functional.l1_loss(found, expected) + generalized_box_iou_loss(found, expected, reduction="mean")
        return named + placed

    held_out = scenes("check", 512, "held_out", work)

    @torch.no_grad()
    def report() -> str:
        tokens = tokenizer([with_article(kind) for kind in KINDS], padding=True, return_tensors="pt").to(device)
        logits, boxes = find(model, pictures(held_out.images[:128], device), dict(tokens))
        truth = torch.from_numpy(held_out.boxes[:128]).to(device).float() / SIZE
        kinds = torch.from_numpy(held_out.kinds[:128]).to(device)
        row = torch.arange(128, device=device)
        scores = logits[row, :, kinds]
        overlap = 1 - generalized_box_iou_loss(corners(boxes[row, scores.argmax(1)]), truth)
        right = (logits.amax(1).argmax(1) == kinds).float().mean()
        return f"giou {overlap.mean():.3f}  kind {right:.3f}  score {scores.amax(1).sigmoid().mean():.2f}"

    fit("detector", model, loss, RECIPE, work, device, report)
    teach_words(model, tokenizer, work, device)
    return model, processor


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train, then write `out/owlvit` in float16."""
    model, processor = train(work, device)
    model.half().cpu().save_pretrained(out / "owlvit")
    processor.save_pretrained(out / "owlvit")
