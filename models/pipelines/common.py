"""What all BootPIG pipelines share: the Reference UNet, the references, and loading and saving trained weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from torch import Tensor, nn

from bootpig.models.core.lora import Lora
from bootpig.models.core.reference_unet import copy_as_reference, restore, sharing_weights, truncate
from bootpig.models.core.rsa import has_rsa, install_rsa, uncompiled
from bootpig.models.pipelines.card import licence_of
from bootpig.models.pipelines.clean_references import ReferenceTimestep
from bootpig.models.pipelines.diffusers_parts import DiffusersParts
from bootpig.models.pipelines.export import load_trained, save_trained, standalone_source
from bootpig.models.pipelines.fixed_attention import FixedAttention
from bootpig.models.pipelines.guidance import Conditions, ReferenceRows
from bootpig.models.pipelines.reference_captions import ReferenceCaption
from bootpig.models.pipelines.references import (
    PreparedReferences,
    ReferencesOfPrompts,
    picture_key,
    pixel_values,
    prepare_picture,
    reference_lists,
)
from bootpig.models.pipelines.supported import check_components
from bootpig.models.pipelines.vae import encoded_mode, normalised

NOISE_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "rescale_betas_zero_snr",
    "trained_betas",
)
"""The fields of a scheduler's config that must match training. Sampling uses the trained values with any scheduler."""


def noise_schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `NOISE_SCHEDULE` of a scheduler's config, None where the class has no such field."""
    schedule = {name: config.get(name) for name in NOISE_SCHEDULE}
    if schedule["trained_betas"] is None:
        del schedule["trained_betas"]
    return schedule


class BootPIGMixin(FixedAttention, DiffusersParts):
    """Mixin for a diffusers pipeline class with the components `unet`, `reference_unet`, `vae` and `scheduler`."""

    # Both UNets run at every step: swapping them in and out of the device would cost more than it saves.
    _exclude_from_cpu_offload = ["safety_checker", "reference_unet"]  # noqa: RUF012 (diffusers' own convention)

    def _register_bootpig(
        self,
        reference_unet: UNet2DConditionModel | None,
        key_scale: float,
        pooling: str,
        reference_caption: str,
        reference_timestep: str,
    ) -> None:
        if reference_caption not in get_args(ReferenceCaption):
            raise ValueError(f"reference_caption: {reference_caption!r} is unknown; use caption or object")
        if reference_timestep not in get_args(ReferenceTimestep):
            raise ValueError(f"reference_timestep: {reference_timestep!r} is unknown; use same or zero")
        check_components(self)
        # A pipeline that only encodes text has no UNet.
        if self.unet is not None:
            install_rsa(self.unet, key_scale, pooling)
            reference_unet = copy_as_reference(self.unet) if reference_unet is None else reference_unet
        self.register_modules(reference_unet=None if reference_unet is None else truncate(reference_unet))
        self.register_to_config(
            key_scale=key_scale,
            pooling=pooling,
            reference_caption=reference_caption,
            reference_timestep=reference_timestep,
        )

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As in diffusers. Also records the commit of a base from the hub, for `save_bootpig` to write. A pipeline that
        was saved with `reference_unet` None has none again."""
        pipeline: Self = super().from_pretrained(name, **kwargs)  # type: ignore[misc]
        index: object = Path(name, "model_index.json")
        if not Path(name).is_dir():
            index = try_to_load_from_cache(
                str(name), "model_index.json", cache_dir=kwargs.get("cache_dir"), revision=kwargs.get("revision")
            )
            if isinstance(index, str):
                pipeline.register_to_config(base_revision=Path(index).parent.name)
        if isinstance(index, (str, Path)) and "reference_unet" not in kwargs:
            saved = json.loads(Path(index).read_text(encoding="utf-8")).get("reference_unet")
            if saved == [None, None]:
                pipeline.register_modules(reference_unet=None)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """As in diffusers, but `pipeline` keeps its attention processors and dtypes: of an ordinary UNet only
        the weights are shared, and nothing is cast unless `dtype` is given."""
        unet = pipeline.components.get("unet")
        if unet is not None and "unet" not in kwargs and not has_rsa(unet):
            kwargs["unet"] = sharing_weights(uncompiled(unet))
        parts: dict[str, Any] = {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}
        dtypes = {name: part.dtype for name, part in parts.items()}
        if {"dtype", "torch_dtype"} & kwargs.keys() or not dtypes:
            return super().from_pipe(pipeline, **kwargs)  # type: ignore[misc, no-any-return]
        if len(set(dtypes.values())) == 1:
            return super().from_pipe(pipeline, dtype=next(iter(dtypes.values())), **kwargs)  # type: ignore[misc, no-any-return]
        # diffusers casts all parts to one dtype; float32 holds the values of all others
        made: Self = super().from_pipe(pipeline, dtype=torch.float32, **kwargs)  # type: ignore[misc]
        for name, part in parts.items():
            part.to(dtypes[name])
        if "reference_unet" not in parts and made.reference_unet is not None:
            made.reference_unet.to(dtypes["unet"])
        return made

    def load_bootpig(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Load a trained model: its Reference UNet, the trained attn1 of its base, and the settings that must match
        training (key scale, pooling, reference caption and timestep, noise schedule). The LoRA weights of a model that
        was trained with LoRA are merged into the base and a copy of it.

        Args:
            folder: a folder written by `save_bootpig`.

        Returns:
            The content of its `bootpig.json`.

        Raises:
            ValueError: a part is missing or damaged, or does not fit this pipeline's UNet, or BootPIG cannot use one of
                this pipeline's components.
        """
        check_components(self)
        reference_unet, info = load_trained(Path(folder), self.unet)
        self.set_like(info, reference_unet)
        return info

    def set_like(self, info: Mapping[str, Any], reference_unet: UNet2DConditionModel) -> None:
        """Take over the settings of a trained model that must match training, and a Reference UNet. `info` is the
        content of the model's `bootpig.json`."""
        self._register_bootpig(reference_unet, **reading(info))
        schedule = {name: value for name, value in info.get("noise_schedule", {}).items() if value is not None}
        known = {name: value for name, value in schedule.items() if name in self.scheduler.config}
        if any(self.scheduler.config[name] != value for name, value in known.items()):
            self.register_modules(scheduler=type(self.scheduler).from_config(self.scheduler.config, **known))

    def read_like(self, info: Mapping[str, Any]) -> None:
        """Read references in the same way as a trained model, without its weights: for comparisons with the untrained
        model. `info` is the content of its `bootpig.json`."""
        self._register_bootpig(self.reference_unet, **reading(info))

    def save_bootpig(
        self,
        folder: str | os.PathLike[str],
        info: Mapping[str, Any] | None = None,
        *,
        train_base: Literal["none", "rsa", "all"] = "rsa",
        dtype: torch.dtype | None = None,
        lora: Lora | None = None,
    ) -> None:
        """Write the trained weights without the base: `reference_unet/`, `rsa.safetensors`, `bootpig.json` and a model
        card made from `bootpig.json`. With `lora`: `reference_lora.safetensors` and `base_lora.safetensors` instead of
        the first two.

        Args:
            folder: created if missing.
            info: more JSON values for `bootpig.json`, such as base, revision, data fingerprint and recipe. key_scale,
                pooling, reference_caption, reference_timestep, prediction_type and noise_schedule come from this
                pipeline.
            train_base: "all" writes the whole base instead of its attn1.
            dtype: dtype of the written weights. None keeps the current one.
            lora: the settings of BootPIG's LoRA adapters in this pipeline's UNets.

        Raises:
            ValueError: an adapter is missing, or there is one and `lora` is not given.
        """
        if lora is None:
            self._refuse_lora("save_bootpig")
        config = self.scheduler.config
        base, revision = self.config.get("_name_or_path"), self.config.get("base_revision")
        written = {
            "base": None if base is None else str(base),  # `from_pretrained` keeps a Path as one
            "revision": revision,
            "base_license": licence_of(str(base or ""), revision),
            "key_scale": self.config.key_scale,
            "pooling": self.config.pooling,
            "reference_caption": self.config.reference_caption,
            "reference_timestep": self.config.reference_timestep,
            "prediction_type": config.get("prediction_type", "epsilon"),
            "noise_schedule": noise_schedule(config),
            **(info or {}),
        }
        whole_base = train_base == "all"
        save_trained(
            Path(folder), self.unet, self.reference_unet, written, whole_base=whole_base, dtype=dtype, lora=lora
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with the Reference UNet written as an ordinary, complete UNet. Adds a `pipeline.py`, so that
        the folder loads without this package:
        `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`."""
        self._refuse_lora("save_pretrained")
        truncated = self.reference_unet
        if truncated is not None:
            if self.unet is None:
                raise ValueError("save_pretrained: unet is missing; the Reference UNet is only saved along with it")
            self.reference_unet = restore(uncompiled(truncated), uncompiled(self.unet))
        try:
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        finally:
            if truncated is not None:
                self.reference_unet = truncated
        Path(save_directory, "pipeline.py").write_text(standalone_source(type(self)), encoding="utf-8")

    def _refuse_lora(self, method: str) -> None:
        """A LoRA's layers change the names of the weights around them."""
        if any(getattr(uncompiled(part), "peft_config", None) for part in (self.unet, self.reference_unet)):
            raise ValueError(f"{method}: a LoRA is loaded; call fuse_lora and unload_lora_weights, or only the latter")

    @torch.no_grad()
    def prepare_references(self, images: ReferencesOfPrompts, prompts: int = 1) -> PreparedReferences:
        """Encode references once for use in many calls. Pass the result as `reference_images`.

        Args:
            images: an image or a flat list of images (for one prompt; in a call it then applies to all prompts), or one
                list for each of `prompts` prompts. Each image is RGB on white or RGBA, of any size, see
                `prepare_picture`. References are encoded at the UNet's own resolution, independent of the height and
                width of the result.
            prompts: number of prompts.

        Raises:
            ValueError: see `reference_lists` and `prepare_picture`.
        """
        sample_size = self.unet.config.sample_size
        size = (sample_size if isinstance(sample_size, int) else min(sample_size)) * self.vae_scale_factor
        rows: dict[str, int] = {}
        pictures: list[Image.Image] = []
        attends = []
        for images_of_prompt in reference_lists(images, prompts):
            refs = []
            for image in images_of_prompt:
                picture = prepare_picture(image, size)
                key = picture_key(picture)
                if key not in rows:
                    rows[key] = len(pictures)
                    pictures.append(picture)
                refs.append(rows[key])
            attends.append(tuple(refs))
        latents = self._encode_pixels(pixel_values(pictures))
        return PreparedReferences(latents, tuple(rows), tuple(attends))

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] to the posterior's mode (N, C, h, w), normalised for the UNet."""
        return normalised(self.vae, encoded_mode(self.vae, pixels.to(self._execution_device, self.vae.dtype)))

    def _reference_rows(
        self,
        prepared: PreparedReferences,
        embeds: Tensor,
        captions: Sequence[str],
        images_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        conditions: Conditions | None = None,
    ) -> ReferenceRows:
        """The batch of the Reference UNet: each distinct (reference, caption, noise) once.

        Args:
            prepared: the references.
            embeds: (prompts, S, D), the embeds of the reference captions.
            captions: for each prompt, a text that identifies its reference caption.
            images_per_prompt: number of images per prompt; they share the prompt's references.
            generator: draws one number per prompt that seeds the noise of its references. Used after the latents are
                drawn.
            conditions: SDXL's conditions, one row per prompt.
        """
        device, dtype = self._execution_device, self.unet.dtype
        clean = self.config.reference_timestep == "zero"
        draws = [0] * len(captions) if clean else _noise_draws(generator, len(captions), images_per_prompt)
        rows: dict[tuple[int, str, int], int] = {}
        sources: list[tuple[int, int]] = []
        attends: list[tuple[int, ...]] = []
        for prompt, references in enumerate(prepared.for_prompts(len(captions))):
            refs = []
            for reference in references:
                key = (reference, captions[prompt], draws[prompt])
                if key not in rows:
                    rows[key] = len(sources)
                    sources.append((reference, prompt))
                refs.append(rows[key])
            attends.extend([tuple(refs)] * images_per_prompt)
        which = [prompt for _, prompt in sources]
        return ReferenceRows(
            latents=prepared.latents[[reference for reference, _ in sources]].to(device, dtype),
            prompt_embeds=embeds[which].to(device, dtype),
            noise_keys=[prepared.keys[reference] for reference, _ in sources]
            if clean
            else [f"{draws[prompt]}/{prepared.keys[reference]}" for reference, prompt in sources],
            attends=attends,
            conditions=conditions and {name: tensor[which] for name, tensor in conditions.items()},
            kept=prepared.kept if clean else None,
        )


def reading(info: Mapping[str, Any]) -> dict[str, Any]:
    """How a trained model reads references, from the content of its `bootpig.json`. Fields that old models lack have
    the value that they were trained with."""
    usual = {"key_scale": 1.0, "pooling": "softmax", "reference_caption": "caption", "reference_timestep": "same"}
    return {name: info.get(name, value) for name, value in usual.items()}


def _noise_draws(
    generator: torch.Generator | list[torch.Generator] | None, prompts: int, images_per_prompt: int
) -> list[int]:
    """One number per prompt: from the generator of its first image, or the same number if all share a generator."""
    generators = generator if isinstance(generator, list) else [generator]
    draws = []
    for each in generators[::images_per_prompt] if isinstance(generator, list) else generators:
        device = each.device if each is not None else torch.device("cpu")
        draws.append(int(torch.randint(0, 2**62, (1,), generator=each, device=device)))
    return draws if isinstance(generator, list) else draws * prompts
