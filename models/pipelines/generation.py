"""One call of a BootPIG pipeline, from arguments to pictures: the part that is the same for every base and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bootpig.models.core.reference_unet import keep_recorders
from bootpig.models.core.rsa import keep_rsa
from bootpig.models.pipelines.callbacks import call_back, check_callback
from bootpig.models.pipelines.common import BootPIGMixin
from bootpig.models.pipelines.guidance import Conditions, Denoiser
from bootpig.models.pipelines.known_region import InpaintTask, KnownRegion, Pictures
from bootpig.models.pipelines.reference_captions import reference_captions
from bootpig.models.pipelines.references import PreparedReferences
from bootpig.models.pipelines.request import Request, Sizes
from bootpig.models.pipelines.schedule import run_schedule
from bootpig.models.pipelines.shapes import check_lengths, check_shapes

Texts = tuple[str | None, str | None]
"""One text per text encoder of the base. None as the first one is SDXL's own empty prompt, zeros."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Text embeds."""

    embeds: Tensor
    """(S, D), or (P, S, D) with one row per prompt."""
    pooled: Tensor | None = None
    """(D',) or (P, D'). SDXL only."""


class GenerationMixin(BootPIGMixin):
    """Implements the call. A subclass per base implements the four methods that raise `NotImplementedError` here."""

    _reference_guidance_scale: float

    def _check(self, r: Request) -> None:
        """Run diffusers' `check_inputs`, which raises ValueError."""
        raise NotImplementedError

    def _encode_texts(self, texts: list[Texts], clip_skip: int | None) -> dict[Texts, Encoded]:
        """Run the text encoders once over a list of distinct texts."""
        raise NotImplementedError

    def _conditions(self, pooled: Tensor | None, sizes: Sizes) -> Conditions | None:
        """The UNet's conditions besides the text, one row per row of `pooled` (rows, D). None if there are none."""
        raise NotImplementedError

    def _output(self, r: Request, latents: Tensor, task: InpaintTask | None) -> Any:
        """Decode `latents` (B, C, h, w) to the return value of the call."""
        raise NotImplementedError

    @property
    def reference_guidance_scale(self) -> float:
        """eta_im of eq. 4 in the current call. Callbacks may set `_reference_guidance_scale`."""
        return self._reference_guidance_scale

    def _generate(self, r: Request, task: InpaintTask | None = None) -> Any:
        """Run a call. `task` is the inpainting task, with the height and width of the request.

        Raises:
            ValueError: arguments contradict each other or differ in number, a reference is unusable, or attention
                processors were replaced.
        """
        self._check_parts(r)
        size = self._size(r)
        r = replace(r, height=size[0], width=size[1], callback_on_step_end_tensor_inputs=r.tensor_inputs())
        check_shapes(self, r, size)
        self._check(r)
        check_callback(r.callback_on_step_end)
        keep_rsa(self.unet, self.config.key_scale, self.config.pooling)
        if r.reference_images is not None:
            keep_recorders(self.reference_unet)
        if r.reference_images is None and (r.reference_prompt is not None or r.reference_prompt_embeds is not None):
            raise ValueError("reference_prompt: has no effect because there are no reference_images; remove it")
        if r.reference_refresh_steps < 1:
            raise ValueError(f"reference_refresh_steps: {r.reference_refresh_steps} is below 1; use 1 or more")
        if r.reference_prompt is not None and r.reference_prompt_embeds is not None:
            raise ValueError("reference_prompt and reference_prompt_embeds: give only one of them")
        self._guidance_scale = r.guidance_scale
        self._reference_guidance_scale = r.reference_guidance_scale
        self._guidance_rescale = r.guidance_rescale
        self._clip_skip = r.clip_skip
        self._cross_attention_kwargs = r.cross_attention_kwargs
        self._interrupt = False

        device = self._execution_device
        noises = task is not None or r.reference_images is not None
        timesteps, steps = run_schedule(self.scheduler, r, device, task.strength if task else None, noises)
        count, each = r.count(), r.num_images_per_prompt
        prepared = r.reference_images
        if prepared is not None and not isinstance(prepared, PreparedReferences):
            prepared = self.prepare_references(prepared, count)
        captions = None
        if prepared is not None and r.reference_prompt_embeds is None:
            captions = reference_captions(self.config.reference_caption, r.prompts(), r.reference_prompt, count)
        prompt, negative, caption = self._encode_all(r, captions)

        latents = self.prepare_latents(
            count * each,
            self.unet.config.in_channels,
            *size,
            prompt.embeds.dtype,
            device,
            r.generator,
            r.latents if r.latents is None else r.latents.to(prompt.embeds.dtype),
        )
        region = None
        if task is not None:
            noise = latents / self.scheduler.init_noise_sigma
            region = task.region(self._encode_pixels, noise)
            latents = task.start(self.scheduler, region, timesteps, latents)
        references = None
        if prepared is not None:
            names = captions or [str(row) for row in range(count)]
            height, width = prepared.latents.shape[-2:]
            seen = (height * self.vae_scale_factor, width * self.vae_scale_factor)
            conditions = self._conditions(caption.pooled, Sizes(seen, (0, 0), seen))
            references = self._reference_rows(prepared, caption.embeds, names, each, r.generator, conditions)
        positive_sizes, negative_sizes = r.sizes(size)
        denoiser = Denoiser(
            self.unet,
            self.reference_unet,
            self.scheduler,
            prompt.embeds.repeat_interleave(each, dim=0),
            negative.embeds.repeat_interleave(each, dim=0),
            references,
            _repeated(self._conditions(prompt.pooled, positive_sizes), each),
            _repeated(self._conditions(negative.pooled, negative_sizes), each),
            r.cross_attention_kwargs,
            r.reference_refresh_steps,
        )
        latents = self._denoise(r, denoiser, timesteps, steps, latents, region)
        output = self._output(r, latents, task)
        self.maybe_free_model_hooks()
        return output

    def _inpaint(
        self, r: Request, image: Pictures, mask_image: Pictures, strength: float, padding_mask_crop: int | None
    ) -> Any:
        """Run a call that repaints the white part of `mask_image`, see `InpaintTask.read`."""
        self._check_parts(r)
        height, width = self._size(r)
        task = InpaintTask.read(image, mask_image, (width, height), strength, padding_mask_crop, r.count())
        return self._generate(r, task)

    def _check_parts(self, r: Request) -> None:
        for name in ("unet", "vae", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: this pipeline was made without it and cannot draw; load it completely")
        if r.reference_images is None:
            return
        if self.reference_unet is None:
            raise ValueError("reference_unet: this pipeline was made without it; leave reference_images out or load it")
        if self.reference_unet.dtype != self.unet.dtype:
            raise ValueError(
                f"reference_unet: {self.reference_unet.dtype} beside a unet of {self.unet.dtype}; cast both alike"
            )

    def _size(self, r: Request) -> tuple[int, int]:
        """(height, width) in pixels. Where the request has none, the UNet's own resolution."""
        sample_size = self.unet.config.sample_size
        sides = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return r.height or sides[0] * self.vae_scale_factor, r.width or sides[1] * self.vae_scale_factor

    def _pictures(
        self, r: Request, pixels: Tensor, task: InpaintTask | None, denormalize: list[bool]
    ) -> tuple[Any, list[float]]:
        """Convert the VAE's pixels to pictures in the request's format.

        With a task, they are pasted into its pictures, and the second value is the PSNR of the known part, see
        `InpaintTask.paste`. Without a task, that list is empty.
        """
        if task is None:
            return self.image_processor.postprocess(pixels, r.output_type, denormalize), []
        generated = self.image_processor.postprocess(pixels, "np", denormalize)
        pictures, psnr = task.paste(generated)
        if r.output_type == "pil":
            return pictures, psnr
        arrays = self.image_processor.pil_to_numpy(pictures)
        return (self.image_processor.numpy_to_pt(arrays) if r.output_type == "pt" else arrays), psnr

    def _denoise(
        self,
        r: Request,
        denoiser: Denoiser,
        timesteps: Tensor,
        steps: int,
        latents: Tensor,
        region: KnownRegion | None,
    ) -> Tensor:
        step_kwargs = self.prepare_extra_step_kwargs(r.generator, r.eta)
        warmup = len(timesteps) - steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=steps) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                prediction = denoiser.predict(
                    latents, timestep, step, self.guidance_scale, self.reference_guidance_scale, self.guidance_rescale
                )
                latents = self.scheduler.step(prediction, timestep, latents, **step_kwargs, return_dict=False)[0]
                if region is not None:
                    following = timesteps[step + 1] if step + 1 < len(timesteps) else None
                    latents = region.keep(self.scheduler, latents, following)
                if r.callback_on_step_end is not None:
                    latents = call_back(self, r, denoiser, step, timestep, latents, region is None)
                if step == len(timesteps) - 1 or (step + 1 > warmup and (step + 1) % self.scheduler.order == 0):
                    progress.update()
        return latents

    def _encode_all(self, r: Request, captions: list[str] | None) -> tuple[Encoded, Encoded, Encoded]:
        """Encode the prompts, the negative prompts and the reference captions, with one row per prompt. Each distinct
        text is encoded once."""
        count = r.count()
        zeros = self.config.get("force_zeros_for_empty_prompt", False)
        prompts: list[Texts] = []
        if r.prompts() is not None:
            prompts = _pairs("prompt", r.prompts(), r.prompt_2, count)
        negatives: list[Texts] = []
        if r.negative_prompt_embeds is None:
            empty = None if zeros else ""
            negatives = _pairs("negative_prompt", r.negative_prompt, r.negative_prompt_2, count, empty)
        captioned: list[Texts] = [(caption, None) for caption in captions or []]

        # As in diffusers, `clip_skip` applies only to the prompt.
        skipped = self._encode_texts(prompts, r.clip_skip) if r.clip_skip is not None and prompts else {}
        plain = [*captioned, *negatives] if r.clip_skip is not None else [*prompts, *captioned, *negatives]
        wanted = list(dict.fromkeys(texts for texts in plain if texts[0] is not None))
        encoded = self._encode_texts(wanted, None) if wanted else {}

        prompt = self._stacked([(skipped or encoded)[texts] for texts in prompts])
        prompt = prompt or self._given("prompt", r.prompt_embeds, r.pooled_prompt_embeds, count)
        if negatives and negatives[0][0] is None:
            pooled = None if prompt.pooled is None else torch.zeros_like(prompt.pooled)
            negative = Encoded(torch.zeros_like(prompt.embeds), pooled)
        else:
            negative = self._stacked([encoded[texts] for texts in negatives]) or self._given(
                "negative_prompt", r.negative_prompt_embeds, r.negative_pooled_prompt_embeds, count
            )
        check_lengths(prompt.embeds, negative.embeds)
        caption = self._stacked([encoded[texts] for texts in captioned]) or prompt
        if r.reference_prompt_embeds is not None:
            caption = self._given(
                "reference_prompt", r.reference_prompt_embeds, r.reference_pooled_prompt_embeds, count
            )
        return prompt, negative, caption

    def _stacked(self, rows: Sequence[Encoded]) -> Encoded | None:
        if not rows:
            return None
        device, dtype = self._execution_device, self.unet.dtype
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Encoded(
            torch.stack([row.embeds for row in rows]).to(device, dtype),
            torch.stack(pooled).to(device, dtype) if pooled else None,
        )

    def _given(self, name: str, embeds: Tensor | None, pooled: Tensor | None, count: int) -> Encoded:
        if embeds is None:
            raise ValueError(f"{name}: missing; give {name} or {name}_embeds")
        device, dtype = self._execution_device, self.unet.dtype
        return Encoded(embeds.to(device, dtype), None if pooled is None else pooled.to(device, dtype))


def no_text_encoder(suffix: str) -> ValueError:
    return ValueError(
        f"text_encoder{suffix}: this pipeline was made without it or its tokenizer; give prompt_embeds, "
        "negative_prompt_embeds and, with references, reference_prompt_embeds"
    )


def _pairs(
    name: str,
    first: str | list[str] | None,
    second: str | list[str] | None,
    count: int,
    empty: str | None = "",
) -> list[Texts]:
    """One pair of texts per prompt, for the two text encoders. A single text applies to all prompts."""
    if first is None and second is None:
        return [(empty, None)] * count
    first = "" if first is None else first
    columns: list[list[str | None]] = []
    for label, texts in ((name, first), (f"{name}_2", second)):
        column: list[str | None] = list(texts) if isinstance(texts, (list, tuple)) else [texts] * count
        if len(column) != count:
            raise ValueError(f"{label}: {len(column)} for {count} prompts; give one per prompt, or a single text")
        columns.append(column)
    return list(zip(*columns, strict=True))  # type: ignore[arg-type]


def _repeated(conditions: Conditions | None, each: int) -> Conditions | None:
    return conditions and {name: tensor.repeat_interleave(each, dim=0) for name, tensor in conditions.items()}
