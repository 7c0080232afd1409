"""DreamBooth, full and with LoRA: fine-tunes the UNet on a subject's pictures, with prior preservation.

The usual recipe (Ruiz et al. 2023; diffusers' train_dreambooth.py and train_dreambooth_lora.py): the prompt
`A photo of a sks <class>` for the subject's pictures; as many pictures of the class, drawn by the base itself, with
`A photo of a <class>`, at equal weight; the text encoder stays frozen.
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
from bootpig.stages.evaluate.prompts import fill
from bootpig.stages.evaluate.subjects import Subject
from science.per_subject import Base, fit, pick, train_subjects
from science.recipes import Recipe

TOKEN = "sks"
PHRASE = "a sks {class}"
"""What names a subject in a prompt, as in `evaluate.rivals`."""
PRIOR_PICTURES = 64
PRIOR_STEPS = 12
PRIOR_GUIDANCE = 4.0
BATCH = 2
"""Pictures of the subject in an update, beside as many of its class."""
RANK = 8

_PRIORS: dict[tuple[str, int], tuple[Tensor, float]] = {}
"""Class and seed → what `prior` gives for them, drawn once by a process, whatever recipes it tries."""


def train(
    base: Base, subjects: Sequence[Subject], target: Path, recipe: Recipe, *, lora: bool = False, seed: int = 0
) -> None:
    """Train a model for each subject, in `target/<subject>`: a pipeline, or with `lora` its `pytorch_lora_weights`.

    The pictures of a class are drawn once and shared by its subjects; the record says how long that took.
    """
    start = {name: tensor.clone() for name, tensor in base.pipeline.unet.state_dict().items()}

    def one(subject: Subject, folder: Path, subject_seed: int) -> dict[str, Any]:
        if (subject.object, seed) not in _PRIORS:
            _PRIORS[subject.object, seed] = prior(base, subject.object, seed)
        latents, seconds = _PRIORS[subject.object, seed]
        if lora:
            _train_lora(base, subject, latents, folder, recipe, subject_seed)
        else:
            _train_full(base, subject, latents, folder, recipe, subject_seed)
            base.pipeline.unet.load_state_dict(start)
        return {"prior_cpu_seconds": round(seconds, 2)}

    train_subjects(subjects, target, recipe, seed, one)


@torch.no_grad()
def prior(base: Base, noun: str, seed: int) -> tuple[Tensor, float]:
    """Latents of `PRIOR_PICTURES` pictures of a class, which the base draws, and the CPU seconds that it took."""
    begin = time.process_time()
    prompt = fill("A photo of a {object}", noun)
    drawn = []
    for first in range(0, PRIOR_PICTURES, 16):
        generators = [torch.Generator().manual_seed(seed * PRIOR_PICTURES + first + n) for n in range(16)]
        pixels = base.pipeline(
            [prompt] * 16,
            num_inference_steps=PRIOR_STEPS,
            guidance_scale=PRIOR_GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
        drawn.append(normalised(base.pipeline.vae, encoded_mode(base.pipeline.vae, pixels * 2 - 1)))
    return torch.cat(drawn), time.process_time() - begin


def _fit(base: Base, subject: Subject, prior_latents: Tensor, parameters: Any, recipe: Recipe, seed: int) -> None:
    own = base.latents(subject.references)
    with torch.no_grad():
        prompts = [
            fill(f"A photo of a {TOKEN} {{object}}", subject.object),
            fill("A photo of a {object}", subject.object),
        ]
        embeds = base.embeds(prompts).repeat_interleave(BATCH, dim=0)

    def step(generator: torch.Generator) -> Tensor:
        latents = torch.cat([pick(own, BATCH, generator), pick(prior_latents, BATCH, generator)])
        return base.loss(latents, embeds, generator)  # the mean over both halves: equal weight

    fit(parameters, recipe, step, seed)


def _train_full(base: Base, subject: Subject, prior_latents: Tensor, folder: Path, recipe: Recipe, seed: int) -> None:
    unet = base.pipeline.unet.requires_grad_(True).train()
    _fit(base, subject, prior_latents, unet.parameters(), recipe, seed)
    unet.requires_grad_(False).eval()
    half = copy.deepcopy(unet).half()
    parts = {**base.pipeline.components, "unet": half}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


def _train_lora(base: Base, subject: Subject, prior_latents: Tensor, folder: Path, recipe: Recipe, seed: int) -> None:
    unet = base.pipeline.unet
    torch.manual_seed(seed)  # of the adapters' first weights
    unet.add_adapter(
        LoraConfig(
            r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"]
        )
    )
    try:
        unet.train()
        _fit(base, subject, prior_latents, [p for p in unet.parameters() if p.requires_grad], recipe, seed)
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    finally:
        unet.delete_adapters("default")
        unet.eval()
