"""Rules about the components of a base model: why BootPIG cannot use a value of one of their properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
"""A component's config as in its JSON file, and its class as `_class_name`."""

Configs = Mapping[str, Config]
"""Component → config. `pipeline` is the content of model_index.json. Components that are not known are left out."""

Rule = Callable[[Any, Configs], str | None]
"""Why a value cannot be used, given the value and all configs; None if it can."""

PIPELINES = {
    "StableDiffusionPipeline": "SD",
    "StableDiffusionImg2ImgPipeline": "SD",
    "StableDiffusionInpaintPipeline": "SD",
    "BootPIGPipeline": "SD",
    "BootPIGInpaintPipeline": "SD",
    "StableDiffusionXLPipeline": "XL",
    "StableDiffusionXLImg2ImgPipeline": "XL",
    "StableDiffusionXLInpaintPipeline": "XL",
    "BootPIGXLPipeline": "XL",
    "BootPIGXLInpaintPipeline": "XL",
}
"""Pipeline class of a base → its family. All classes of a family have the same components."""

SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers whose noise levels come from DDPM's betas, the process that BootPIG is trained on."""

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
"""Those of `DDPMScheduler`, which adds the noise in training."""

BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")

DEFAULTS: Mapping[str, Config] = {
    "AutoencoderKL": {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "scaling_factor": 0.18215},
    "AutoencoderTiny": {
        "in_channels": 3,
        "out_channels": 3,
        "encoder_block_out_channels": (64, 64, 64, 64),
        "decoder_block_out_channels": (64, 64, 64, 64),
        "upsampling_scaling_factor": 2,
        "latent_channels": 4,
        "scaling_factor": 1.0,
    },
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "attention_type": "default",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "CLIPTextModel": {"hidden_size": 512, "max_position_embeddings": 77},
    "CLIPTextModelWithProjection": {"hidden_size": 512, "projection_dim": 512, "max_position_embeddings": 77},
}
"""Class → the values of fields that its config may leave out. All others are None."""


def property_of(configs: Configs, component: str, name: str) -> Any:
    """A field of a component's config, or its class. None if the component is not known."""
    config = configs.get(component, {})
    kind = config.get("_class_name")
    if name == "class":
        return kind
    value = config.get(name)
    return DEFAULTS.get(str(kind), {}).get(name) if value is None else value


def family(configs: Configs) -> str:
    """`SD` or `XL`. An unknown pipeline class raises `KeyError`."""
    return PIPELINES[configs["pipeline"]["_class_name"]]


def one_of(*allowed: Any, reason: str) -> Rule:
    return lambda value, _: None if value in allowed else reason


def unset(reason: str) -> Rule:
    """Refuses all values but None, 0 and False, alone or in a list."""
    return lambda value, _: reason if any(value if isinstance(value, (list, tuple)) else [value]) else None


def missing_rule(value: Any, configs: Configs) -> str | None:
    return f"a pipeline of {family(configs)} needs {'it' if len(value) == 1 else 'them'}" if value else None


def scheduler_rule(value: Any, configs: Configs) -> str | None:
    if value in SCHEDULERS:
        return None
    if "Flow" in value:
        return "it does flow matching and has no betas"
    if value.startswith(("EDM", "CosineDPM", "Karras", "ScoreSde", "CMStochastic")):
        return "it has noise levels of its own and no betas"
    if value.endswith("InverseScheduler"):
        return "it adds noise instead of removing it"
    return "it does not have Stable Diffusion's noise process"


def beta_schedule_rule(value: Any, configs: Configs) -> str | None:
    if value is None or property_of(configs, "scheduler", "trained_betas") is not None:
        return None
    return None if value in BETA_SCHEDULES else "DDPMScheduler, which training uses, has no such schedule"


def trained_betas_rule(value: Any, configs: Configs) -> str | None:
    count = property_of(configs, "scheduler", "num_train_timesteps") or 1000
    return None if value is None or len(value) == count else f"{len(value)} values for {count} timesteps"


def timesteps_rule(value: Any, configs: Configs) -> str | None:
    return None if value is None or (type(value) is int and value > 0) else "no number of timesteps"


def variance_rule(value: Any, configs: Configs) -> str | None:
    return "training has no loss for a learned variance" if str(value).startswith("learned") else None


def vae_rule(value: Any, configs: Configs) -> str | None:
    reasons = {
        "AsymmetricAutoencoderKL": "its decoder needs the picture and its mask",
        "ConsistencyDecoderVAE": "its decoder draws noise of its own",
        "VQModel": "its latents are quantized",
    }
    if value in ("AutoencoderKL", "AutoencoderTiny"):
        return None
    return reasons.get(value, "Stable Diffusion's pipelines have no such VAE")


def levels_rule(value: Any, configs: Configs) -> str | None:
    decoder = property_of(configs, "vae", "decoder_block_out_channels")
    return None if value is None or len(value) == len(decoder) else "other levels than the decoder's"


def scaling_rule(value: Any, configs: Configs) -> str | None:
    return None if math.isfinite(value) and value > 0 else "no scale"


def statistics_rule(value: Any, configs: Configs) -> str | None:
    """For `latents_mean` and `latents_std`."""
    if value is None:
        return None
    if None in [property_of(configs, "vae", name) for name in ("latents_mean", "latents_std")]:
        return "latents_mean and latents_std act only together"
    if family(configs) == "SD":
        return "diffusers' pipelines of Stable Diffusion 1.x and 2.x ignore it"
    channels = property_of(configs, "vae", "latent_channels")
    if len(value) != channels:
        return f"{len(value)} values for {channels} latent channels"
    return None if all(math.isfinite(each) for each in value) else "not finite"


def deviations_rule(value: Any, configs: Configs) -> str | None:
    reason = statistics_rule(value, configs)
    return reason or ("not above 0" if value is not None and min(value) <= 0 else None)


def shift_rule(value: Any, configs: Configs) -> str | None:
    return "diffusers' pipelines of Stable Diffusion 1.x, 2.x and XL ignore it" if value else None


def in_channels_rule(value: Any, configs: Configs) -> str | None:
    latent = property_of(configs, "vae", "latent_channels")
    if latent is None or value == latent:
        return None
    purposes = {2 * latent + 1: "inpaints", 2 * latent: "edits pictures", latent + 1: "reads depth", 7: "upscales"}
    return f"its VAE has {latent} latent channels" + (f"; it {purposes[value]}" if value in purposes else "")


def out_channels_rule(value: Any, configs: Configs) -> str | None:
    channels = property_of(configs, "unet", "in_channels")
    return None if value == channels else f"its input has {channels}"


def sample_size_rule(value: Any, configs: Configs) -> str | None:
    sides = [value, value] if type(value) is int else list(value or ())
    usable = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    return None if usable else "the pictures' size is unknown"


def blocks_rule(value: Any, configs: Configs) -> str | None:
    unknown = [name for name in value if name not in BLOCKS]
    return f"{unknown[0]} is not a block of Stable Diffusion" if unknown else None


def up_blocks_rule(value: Any, configs: Configs) -> str | None:
    reason = blocks_rule(value, configs)
    return reason or (None if "CrossAttnUpBlock2D" in value else "no attention that could read a reference")


def addition_rule(value: Any, configs: Configs) -> str | None:
    wanted = "text_time" if family(configs) == "XL" else None
    return None if value == wanted else f"pipelines of {family(configs)} pass {wanted or 'no such condition'}"


def added_width_rule(value: Any, configs: Configs) -> str | None:
    """SDXL's added conditions are the pooled embeds and six sizes. The refiner's are five."""
    pooled = property_of(configs, "text_encoder_2", "projection_dim")
    if family(configs) == "SD" or pooled is None:
        return None
    size = property_of(configs, "unet", "addition_time_embed_dim")
    if value == pooled + 5 * size:
        return "an SDXL refiner, which reads an aesthetic score"
    wanted = pooled + 6 * size
    return None if value == wanted else f"the pooled embeds and six sizes have {wanted}"


def text_width_rule(value: Any, configs: Configs) -> str | None:
    names = ("text_encoder",) if family(configs) == "SD" else ("text_encoder", "text_encoder_2")
    widths = [property_of(configs, name, "hidden_size") for name in names]
    if None in widths:
        return None
    found = set(value) if isinstance(value, (list, tuple)) else {value}
    return None if found == {sum(widths)} else f"the text embeds have width {sum(widths)}"


def tokens_rule(encoder: str) -> Rule:
    def rule(value: Any, configs: Configs) -> str | None:
        positions = property_of(configs, encoder, "max_position_embeddings")
        if value is None or positions is None or value <= positions:
            return None
        return f"{encoder} has {positions} positions"

    return rule


def second_tokens_rule(value: Any, configs: Configs) -> str | None:
    first = property_of(configs, "tokenizer", "model_max_length")
    reason = tokens_rule("text_encoder_2")(value, configs)
    return reason or (None if None in (value, first) or value == first else f"the first tokenizer has {first}")
