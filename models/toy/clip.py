"""Trains the toy CLIP on pictures and their captions.

Its vision model is initialised from the trained toy detector, which has the same architecture and already knows the
kinds. From random weights, training would take four times as many steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, OwlViTForObjectDetection

from bootpig.models.toy.renders import Renders, scenes
from bootpig.models.toy.soften import pictures, soften
from bootpig.models.toy.tokens import all_captions, build_tokenizer
from bootpig.models.toy.training import Recipe, fit
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, SIZE

RECIPE = Recipe(steps=700, learning_rate=7e-4, tail_from=0.4, ema=0.99)
BATCH = 64
MAX_TOKENS = 32
MEAN = STD = [0.5, 0.5, 0.5]


def build_processor(texts: list[str]) -> CLIPProcessor:
    """A processor for pictures of the toy world, with a vocabulary for `texts`."""
    size = {"height": SIZE, "width": SIZE}
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=MEAN, image_std=STD, do_convert_rgb=True
    )
    return CLIPProcessor(image_processor, build_tokenizer(texts, MAX_TOKENS))


def build(tokens: int) -> CLIPModel:
    """An untrained CLIP with a vocabulary of `tokens` entries, of which the last is the end token."""
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
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def take_pictures_from(detector: OwlViTForObjectDetection, model: CLIPModel) -> None:
    """Copy the detector's vision model into `model`. In CLIP, transformers spells one layer's name differently."""
    tower = detector.owlvit.vision_model.state_dict()
    model.vision_model.load_state_dict({key.replace("pre_layernorm", "pre_layrnorm"): w for key, w in tower.items()})


def caption_indices(data: Renders) -> np.ndarray:
    """N int64: the index of each picture's caption in `all_captions`."""
    return (data.kinds * len(POSITIONS) + data.positions) * len(SCENES) + data.scenes


def judge(image_embeds: torch.Tensor, text_embeds: torch.Tensor, axis: str) -> torch.Tensor:
    """Classify the kind, position or scene of each picture zero-shot, with the mean of a class's captions as its text.

    Args:
        image_embeds: N×D, normalised.
        text_embeds: 288×D, normalised, for `all_captions`.
        axis: `kind`, `position` or `scene`.

    Returns:
        N int64, an index into KINDS, POSITIONS or SCENES.
    """
    others = {"kind": (1, 2), "position": (0, 2), "scene": (0, 1)}[axis]
    classes = text_embeds.view(len(KINDS), len(POSITIONS), len(SCENES), -1).mean(others)
    return (image_embeds @ functional.normalize(classes, dim=-1).T).argmax(1)


def train(work: Path, out: Path, device: torch.device) -> tuple[CLIPModel, CLIPProcessor]:
    torch.manual_seed(2)
    data = scenes("base", 24_000, "train", work)
    held_out = scenes("check", 512, "held_out", work)
    processor = build_processor(all_captions())
    tokens = processor.tokenizer(all_captions(), padding=True, return_tensors="pt").to(device)
    ids, attention = tokens["input_ids"], tokens["attention_mask"]
    captions = caption_indices(data)
    model = build(len(processor.tokenizer))
    take_pictures_from(OwlViTForObjectDetection.from_pretrained(out / "owlvit", dtype=torch.float32), model)

    def embed(x: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(input_ids=ids[chosen], attention_mask=attention[chosen], pixel_values=x * 2 - 1)
        return output.image_embeds.float(), output.text_embeds.float()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        index = rng.integers(len(data), size=BATCH)
        x = soften(pictures(data.images[index], device), rng)
        # a caption shared by several pictures is used once, as a positive for each of them
        chosen, shared = (
            torch.from_numpy(column).to(device) for column in np.unique(captions[index], return_inverse=True)
        )
        image_embeds, text_embeds = embed(x, chosen)
        with torch.autocast(device.type, enabled=False):
            logits = image_embeds @ text_embeds.T * model.logit_scale.clamp(max=4.6).exp()
        matches = functional.one_hot(shared, len(chosen)).float()
        by_text = functional.cross_entropy(logits.T, matches.T / matches.T.sum(1, keepdim=True))
        return (functional.cross_entropy(logits, shared) + by_text) / 2

    @torch.no_grad()
    def report() -> str:
        image_embeds, text_embeds = embed(pictures(held_out.images, device), torch.arange(len(ids), device=device))
        truth = {"kind": held_out.kinds, "position": held_out.positions, "scene": held_out.scenes}
        right = {k: (judge(image_embeds, text_embeds, k).cpu().numpy() == v).mean() for k, v in truth.items()}
        match = (image_embeds * text_embeds[caption_indices(held_out)]).sum(1).mean()
        return "  ".join(f"{axis} {share:.3f}" for axis, share in right.items()) + f"  cosine {match:.3f}"

    fit("clip", model, loss, RECIPE, work, device, report)
    return model, processor


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train from `out/owlvit`, then write `out/clip` in float16."""
    model, processor = train(work, out, device)
    model.half().cpu().save_pretrained(out / "clip")
    processor.save_pretrained(out / "clip")
