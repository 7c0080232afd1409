"""What DreamBooth and Textual Inversion share: a subject's pictures as latents, the loss, the loop, the record."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

from bootpig.models.pipelines.references import pixel_values
from bootpig.models.pipelines.vae import encoded_mode, normalised
from bootpig.stages.engine.contract import sample_seed
from bootpig.stages.evaluate.subjects import Subject
from science.recipes import Recipe
from science.subjects import captioned, mirrored, whole_picture

RECORD = "training.json"
"""Written last: a folder that has it is complete."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to train on."""

    latents: Tensor
    """(N, C, h, w), normalised for the UNet."""
    captions: Sequence[str]
    """N; of a subject's pictures with `{object}` in place of the class."""

    def pick(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """`count` of them at random."""
        places = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[places], [self.captions[place] for place in places.tolist()]


@dataclass(frozen=True)
class Base:
    """The base pipeline, whose weights each training starts from."""

    pipeline: StableDiffusionPipeline
    schedule: DDPMScheduler

    @classmethod
    def load(cls, folder: str) -> Base:
        """Float32, on the CPU, without gradients."""
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, DDPMScheduler.from_config(pipeline.scheduler.config))

    @torch.no_grad()
    def pictures(self, subject: Subject) -> Pictures:
        """A subject's whole pictures in scenes, and their mirror images."""
        files, templates = zip(*captioned(subject), strict=True)
        pixels = pixel_values([whole_picture(file) for file in files])
        both = torch.cat([pixels, pixels.flip(-1)])
        latents = normalised(self.pipeline.vae, encoded_mode(self.pipeline.vae, both))
        return Pictures(latents, (*templates, *map(mirrored, templates)))

    def embeds(self, prompts: Sequence[str]) -> Tensor:
        """(P, S, D) of the text encoder, with gradients if it has any."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        embeds: Tensor = self.pipeline.text_encoder(tokens.input_ids)[0]
        return embeds

    def loss(
        self, latents: Tensor, embeds: Tensor, generator: torch.Generator, conditions: dict[str, Any] | None = None
    ) -> Tensor:
        """The mean squared error of the UNet's prediction, a scalar.

        Args:
            latents: (B, C, h, w), clean.
            embeds: (B, S, D).
            generator: draws noise and timesteps.
            conditions: the UNet's other conditions.
        """
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(self.schedule.config.num_train_timesteps, (len(latents),), generator=generator)
        noisy = self.schedule.add_noise(latents, noise, steps)
        goal = noise
        if self.schedule.config.prediction_type == "v_prediction":
            goal = self.schedule.get_velocity(latents, noise, steps)
        output = self.pipeline.unet(noisy, steps, encoder_hidden_states=embeds, added_cond_kwargs=conditions)
        return mse_loss(output.sample, goal)


Step = Callable[[torch.Generator], Tensor]
"""The loss of one update; the generator draws all that is random."""


def fit(
    parameters: Iterable[torch.nn.Parameter], recipe: Recipe, step: Step, seed: int, weight_decay: float = 1e-2
) -> None:
    """Train with AdamW at a constant learning rate, gradients clipped to norm 1."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.updates):
        loss = step(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def train_subjects(
    subjects: Sequence[Subject],
    target: Path,
    recipe: Recipe,
    seed: int,
    train: Callable[[Subject, Path, int], dict[str, Any] | None],
) -> None:
    """Train each subject that is not complete, in turn. A killed call goes on with the subject that it was at.

    Args:
        subjects: the subjects.
        target: gets a folder for each.
        recipe: for the record; a folder with another is made again.
        seed: with the subject's name, that of its training.
        train: writes the model of a subject to an empty folder, given its seed. Returns more for the record.
    """
    for subject in subjects:
        folder = target / subject.name
        wanted = {"recipe": recipe.of_training(), "seed": seed}
        if is_complete(folder, wanted):
            continue
        partial = folder.with_name(f"{folder.name}.partial")
        for old in (folder, partial):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        begin = time.process_time(), time.monotonic()
        more = train(subject, partial, sample_seed(seed, "science", subject.name)) or {}
        write_record(partial, wanted, begin, more)
        partial.rename(folder)
        print(f"{target.name}: {subject.name} in {time.monotonic() - begin[1]:.0f} s", flush=True)


def is_complete(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether a folder has the model of this recipe and seed."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(record.get(name) == value for name, value in wanted.items())


def write_record(folder: Path, facts: dict[str, Any], begin: tuple[float, float], more: dict[str, Any]) -> None:
    """Write what was trained and how long it took. `begin`: CPU and wall-clock time before, in seconds."""
    seconds = {
        "cpu_seconds": round(time.process_time() - begin[0], 2),
        "seconds": round(time.monotonic() - begin[1], 2),
        "threads": torch.get_num_threads(),
    }
    (folder / RECORD).write_text(json.dumps({**facts, **seconds, **more}, indent=2) + "\n", encoding="utf-8")
