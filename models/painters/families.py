"""The known families of text-to-image pipelines. Facts from the sources of diffusers 0.42."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bootpig.models.painters.family import Configs, Family, always, latent_factor, never, packed, patches


def _component(name: str, setting: str, configs: Configs) -> Any:
    return configs.get(name, {}).get(setting)


def _embeds_guidance(configs: Configs) -> bool:
    return bool(_component("transformer", "guidance_embeds", configs))


def _is_not_distilled(configs: Configs) -> bool:
    return not _component("", "is_distilled", configs)


def _unet_embeds_guidance(configs: Configs) -> bool:
    """Whether the UNet was distilled from guidance: it reads the scale, and no negative prompt."""
    return _component("unet", "time_cond_proj_dim", configs) is not None


def _unet_is_guided_twice(configs: Configs) -> bool:
    return not _unet_embeds_guidance(configs)


def _has_guider(configs: Configs) -> bool:
    guider = _component("", "guider", configs)
    return isinstance(guider, list | tuple) and len(guider) == 2 and guider[1] is not None


def _binned(known: tuple[int, ...]) -> Any:
    """Whether the pipeline draws the nearest size that it was trained on, and scales the result to the given size. It
    has such sizes only for some transformers."""

    def fixed(configs: Configs) -> Mapping[str, Any]:
        return {
            "use_resolution_binning": _component("transformer", "sample_size", configs) in known,
            "clean_caption": False,  # else pictures would depend on whether two packages are installed
        }

    return fixed


def _patches_unless_binned(configs: Configs) -> int:
    binned = _component("transformer", "sample_size", configs) in (32, 64, 128, 256)
    return latent_factor(configs) if binned else patches(configs)


def _without_binning(configs: Configs) -> Mapping[str, Any]:
    return {"use_resolution_binning": False}


def _thirty_two(configs: Configs) -> int:
    return 32


def _sixteen(configs: Configs) -> int:
    return 16


FAMILIES = (
    Family(
        "Stable Diffusion 1, 2",
        ("StableDiffusionPipeline",),
        embedded=_unet_embeds_guidance,
        negated=_unet_is_guided_twice,
        note="also v-prediction, LCM and Turbo weights",
    ),
    Family(
        "Stable Diffusion XL",
        ("StableDiffusionXLPipeline",),
        embedded=_unet_embeds_guidance,
        negated=_unet_is_guided_twice,
        note="with or without a refiner; also LCM, Turbo and Lightning weights",
    ),
    Family("LCM", ("LatentConsistencyModelPipeline",), embedded=always, negated=never),
    Family("Kolors", ("KolorsPipeline",), embedded=_unet_embeds_guidance, negated=_unet_is_guided_twice),
    Family("Stable Diffusion 3, 3.5", ("StableDiffusion3Pipeline",), multiple=patches),
    Family(
        "FLUX.1",
        ("FluxPipeline",),
        multiple=packed,
        guided=_embeds_guidance,
        embedded=always,
        negated=never,
        note="schnell: no guidance",
    ),
    Family("FLUX.2", ("Flux2Pipeline",), multiple=packed, guided=_embeds_guidance, embedded=always, negated=never),
    Family(
        "FLUX.2 klein",
        ("Flux2KleinPipeline",),
        multiple=packed,
        guided=_is_not_distilled,
        negated=never,
        note="distilled: no guidance",
    ),
    Family("Qwen-Image", ("QwenImagePipeline",), multiple=packed, guidance="true_cfg_scale", empty=" "),
    Family("Z-Image", ("ZImagePipeline",), multiple=packed, off=0.0, note="Turbo: guidance_scale 0"),
    Family("Sana", ("SanaPipeline",), multiple=_thirty_two, fixed=_binned((16, 32, 64, 128))),
    Family(
        "Sana Sprint",
        ("SanaSprintPipeline",),
        multiple=_thirty_two,
        embedded=always,
        negated=never,
        fixed=_binned((32,)),
    ),
    Family("PixArt-α", ("PixArtAlphaPipeline",), multiple=_patches_unless_binned, fixed=_binned((32, 64, 128))),
    Family("PixArt-Σ", ("PixArtSigmaPipeline",), multiple=_patches_unless_binned, fixed=_binned((32, 64, 128, 256))),
    Family("Lumina 2", ("Lumina2Pipeline",), multiple=packed),
    Family("HunyuanDiT", ("HunyuanDiTPipeline",), multiple=patches, fixed=_without_binning),
    Family(
        "HunyuanImage 2.1",
        ("HunyuanImagePipeline",),
        multiple=packed,
        guidance="distilled_guidance_scale",
        guided=lambda configs: _has_guider(configs) or _embeds_guidance(configs),
        embedded=lambda configs: not _has_guider(configs),
        negated=_has_guider,
        batches=False,  # a caption with quotes changes how the whole call is guided
        note="distilled: no negative prompt",
    ),
    Family(
        "Kandinsky 5",
        ("Kandinsky5T2IPipeline",),
        multiple=_sixteen,
        sizes=((1024, 1024), (1408, 640), (640, 1408), (1280, 768), (768, 1280), (1152, 896), (896, 1152)),
        batches=False,
        output="image",
    ),
    Family("AuraFlow", ("AuraFlowPipeline",), multiple=packed),
    Family("CogView 4", ("CogView4Pipeline",), multiple=_sixteen, batches=False),
    Family("CogView 3 Plus", ("CogView3PlusPipeline",), multiple=patches),
    Family("Chroma", ("ChromaPipeline",), multiple=packed),
    Family("OmniGen", ("OmniGenPipeline",), multiple=packed, negated=never, batches=False),
    Family("Krea 2", ("Krea2Pipeline",), multiple=patches, off=0.0, note="Turbo: guidance_scale 0"),
    Family("Ovis-Image", ("OvisImagePipeline",), multiple=packed),
)

REFINER = Family("SDXL refiner", ("StableDiffusionXLImg2ImgPipeline",))
"""Continues from the latents of another SDXL pipeline, and so takes no size."""

BY_CLASS = {name: family for family in FAMILIES for name in family.classes}
"""Name of a pipeline class → its family."""
