"""Textual Inversion: learns the embedding of one new token on a subject's pictures; all networks stay frozen.

The usual recipe (Gal et al. 2022; diffusers' textual_inversion.py): the token starts as the subject's class; each
update puts it into the captions of the pictures; no weight decay. The usual sentences, such as `A close-up photo of a
<sks>`, are not used: the toy base does not understand them, see `science.subjects`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bootpig.stages.evaluate.prompts import with_phrase
from bootpig.stages.evaluate.subjects import Subject
from science.per_subject import Base, fit, train_subjects
from science.recipes import Recipe

TOKEN = "<sks>"
PHRASE = "a <sks>"
"""What names a subject in a prompt, as in `evaluate.rivals`."""
FILE = "learned_embeds.safetensors"
BATCH = 2


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
        own = base.pictures(subject)
        words = tokenizer(subject.object, add_special_tokens=False).input_ids
        learned = torch.nn.Parameter(frozen[words].mean(0))

        def step(generator: torch.Generator) -> Tensor:
            latents, templates = own.pick(BATCH, generator)
            embeds = _embeds(base, [with_phrase(template, PHRASE) for template in templates], learned, place)
            return base.loss(latents, embeds, generator)

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
