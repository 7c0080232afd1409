"""DreamBooth, full and with LoRA: fine-tunes UNet and text encoder on a subject's pictures.

The usual recipe (Ruiz et al. 2023; diffusers' train_dreambooth.py and train_dreambooth_lora.py with
`--train_text_encoder`): a rare token and the class for the subject's pictures; with prior preservation, as many
pictures of the class, drawn by the base itself. Whether that is used is tuned.

Two things are as the toy base needs them. Prompts are captions with a place, see `science.subjects`, and the rare token
is a single one that replaces the article, which keeps the other words at their places: `a sks mug` is two tokens longer
than any caption of the base and takes a quarter of its CLIP-T before any training. And the text encoder is trained,
because of a token that it does not know it passes hardly anything on. That does not suffice: with prior preservation,
the pictures of the token and of the class stay alike, and the class takes back what the subject's pictures teach.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from bootpig.models.pipelines.vae import encoded_mode, normalised
from bootpig.models.toy.world import POSITIONS, SCENES, caption
from bootpig.stages.evaluate.prompts import with_phrase
from bootpig.stages.evaluate.subjects import Subject
from science.per_subject import Base, Pictures, fit, train_subjects
from science.recipes import Recipe

PHRASE = "x {class}"
"""What names a subject in a prompt, as in `evaluate.rivals`."""
PRIOR_PICTURES = 64
PRIOR_STEPS = 12
PRIOR_GUIDANCE = 4.0
BATCH = 2
"""Pictures of the subject in an update, beside as many of its class."""
RANK = 8
LAYERS = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")
"""Those with a LoRA, of UNet and text encoder."""

_PRIORS: dict[tuple[str, int], tuple[Pictures, float]] = {}
"""Class and seed → what `prior` gives for them, drawn once by a process, whatever recipes it tries."""


def train(
    base: Base, subjects: Sequence[Subject], target: Path, recipe: Recipe, *, lora: bool = False, seed: int = 0
) -> None:
    """Train a model for each subject, in `target/<subject>`: a pipeline, or with `lora` its `pytorch_lora_weights`.

    The pictures of a class are drawn once and shared by its subjects; the record says how long that took.
    """
    networks = base.pipeline.unet, base.pipeline.text_encoder
    starts = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]

    def one(subject: Subject, folder: Path, subject_seed: int) -> dict[str, Any]:
        pictures, seconds = None, 0.0
        if recipe.prior_loss_weight:
            if (subject.object, seed) not in _PRIORS:
                _PRIORS[subject.object, seed] = prior(base, subject.object, seed)
            pictures, seconds = _PRIORS[subject.object, seed]
        if lora:
            _train_lora(base, subject, pictures, folder, recipe, subject_seed)
        else:
            _train_full(base, subject, pictures, folder, recipe, subject_seed)
            for network, start in zip(networks, starts, strict=True):
                network.load_state_dict(start)
        return {"prior_cpu_seconds": round(seconds, 2)}

    train_subjects(subjects, target, recipe, seed, one)


@torch.no_grad()
def prior(base: Base, noun: str, seed: int) -> tuple[Pictures, float]:
    """`PRIOR_PICTURES` pictures of a class in all places, which the base draws, and the CPU seconds that it took."""
    begin = time.process_time()
    places = [caption(noun, position, scene) for position in POSITIONS for scene in SCENES]
    captions = [places[number % len(places)] for number in range(PRIOR_PICTURES)]
    drawn = []
    for first in range(0, PRIOR_PICTURES, 16):
        generators = [torch.Generator().manual_seed(seed * PRIOR_PICTURES + first + n) for n in range(16)]
        pixels = base.pipeline(
            captions[first : first + 16],
            num_inference_steps=PRIOR_STEPS,
            guidance_scale=PRIOR_GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
        drawn.append(normalised(base.pipeline.vae, encoded_mode(base.pipeline.vae, pixels * 2 - 1)))
    return Pictures(torch.cat(drawn), captions), time.process_time() - begin


def _fit(base: Base, subject: Subject, of_class: Pictures | None, parameters: Any, recipe: Recipe, seed: int) -> None:
    own = base.pictures(subject)
    phrase = PHRASE.replace("{class}", subject.object)

    def step(generator: torch.Generator) -> Tensor:
        latents, templates = own.pick(BATCH, generator)
        loss = base.loss(latents, base.embeds([with_phrase(each, phrase) for each in templates]), generator)
        if of_class is None or recipe.prior_loss_weight is None:
            return loss
        other, captions = of_class.pick(BATCH, generator)
        return loss + recipe.prior_loss_weight * base.loss(other, base.embeds(captions), generator)

    fit(parameters, recipe, step, seed)


def _train_full(
    base: Base, subject: Subject, of_class: Pictures | None, folder: Path, recipe: Recipe, seed: int
) -> None:
    networks = {"unet": base.pipeline.unet, "text_encoder": base.pipeline.text_encoder}
    for network in networks.values():
        network.requires_grad_(True).train()
    _fit(base, subject, of_class, [p for each in networks.values() for p in each.parameters()], recipe, seed)
    for network in networks.values():
        network.requires_grad_(False).eval()
    half = {name: copy.deepcopy(network).half() for name, network in networks.items()}
    parts = {**base.pipeline.components, **half}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


def _train_lora(
    base: Base, subject: Subject, of_class: Pictures | None, folder: Path, recipe: Recipe, seed: int
) -> None:
    networks = base.pipeline.unet, base.pipeline.text_encoder
    torch.manual_seed(seed)  # of the adapters' first weights
    for network, names in zip(networks, LAYERS, strict=True):
        network.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(names))
        )
    try:
        for network in networks:
            network.train()
        trained = [p for network in networks for p in network.parameters() if p.requires_grad]
        _fit(base, subject, of_class, trained, recipe, seed)
        unet, text = (convert_state_dict_to_diffusers(get_peft_model_state_dict(network)) for network in networks)
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=unet, text_encoder_lora_layers=text)
    finally:
        networks[0].delete_adapters("default")
        networks[1].delete_adapter("default")
        for network in networks:
            network.eval()
