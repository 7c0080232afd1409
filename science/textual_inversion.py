"""Textual Inversion: learns the embedding of one new token on a subject's pictures; all networks stay frozen.

The usual recipe (Gal et al. 2022; diffusers' textual_inversion.py): the token starts as the subject's class; each
update puts it into one of the usual sentences; no weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bootpig.stages.evaluate.subjects import Subject
from science.per_subject import Base, fit, pick, train_subjects
from science.recipes import Recipe

TOKEN = "<sks>"
PHRASE = "a <sks>"
"""What names a subject in a prompt, as in `evaluate.rivals`."""
FILE = "learned_embeds.safetensors"
BATCH = 2
SENTENCES = (
    "A photo of a {}", "A photo of the {}", "A photo of my {}", "A photo of one {}", "A photo of a clean {}",
    "A photo of a nice {}", "A photo of a small {}", "A photo of a large {}", "A good photo of a {}",
    "A close-up photo of a {}", "A cropped photo of a {}", "A rendition of a {}",
)  # fmt: skip
"""A dozen of the 27 sentences of the authors."""


def train(base: Base, subjects: Sequence[Subject], target: Path, recipe: Recipe, *, seed: int = 0) -> None:
    """Learn a token for each subject, in `target/<subject>/learned_embeds.safetensors`."""
    tokenizer, encoder = base.pipeline.tokenizer, base.pipeline.text_encoder
    if TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens(TOKEN)
        encoder.resize_token_embeddings(len(tokenizer))
    table = encoder.get_input_embeddings().weight
    place = tokenizer.convert_tokens_to_ids(TOKEN)
    frozen = table.detach().clone()

    def one(subject: Subject, folder: Path, subject_seed: int) -> None:
        own = base.latents(subject.references)
        words = tokenizer(subject.object, add_special_tokens=False).input_ids
        learned = torch.nn.Parameter(frozen[words].mean(0))

        def step(generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(SENTENCES), (BATCH,), generator=generator).tolist()
            embeds = _embeds(base, [SENTENCES[number].format(TOKEN) for number in chosen], learned, place)
            return base.loss(pick(own, BATCH, generator), embeds, generator)

        fit([learned], recipe, step, subject_seed, weight_decay=0.0)
        save_file({TOKEN: learned.detach().clone()}, folder / FILE)

    train_subjects(subjects, target, recipe, seed, one)


def _embeds(base: Base, prompts: Sequence[str], learned: Tensor, place: int) -> Tensor:
    """(P, S, D), with gradients to `learned` (d), which is used as the embedding of token `place`."""
    table = base.pipeline.text_encoder.get_input_embeddings()

    def replaced(_: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return torch.where((inputs[0] == place)[..., None], learned, output)

    hook = table.register_forward_hook(replaced)
    try:
        return base.embeds(prompts)
    finally:
        hook.remove()
