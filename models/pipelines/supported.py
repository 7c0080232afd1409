"""What BootPIG assumes about a base model's components: every property is handled as diffusers does it, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bootpig.models.pipelines.base_rules import (
    BETA_SCHEDULES,
    BLOCKS,
    PIPELINES,
    SCHEDULERS,
    Configs,
    Rule,
    added_width_rule,
    addition_rule,
    beta_schedule_rule,
    blocks_rule,
    deviations_rule,
    in_channels_rule,
    levels_rule,
    missing_rule,
    one_of,
    out_channels_rule,
    property_of,
    sample_size_rule,
    scaling_rule,
    scheduler_rule,
    second_tokens_rule,
    shift_rule,
    statistics_rule,
    text_width_rule,
    timesteps_rule,
    tokens_rule,
    trained_betas_rule,
    unset,
    up_blocks_rule,
    vae_rule,
    variance_rule,
)


class UnsupportedBase(ValueError):
    """BootPIG cannot use a base model. One line per property."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(f"the base model {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Property:
    """A property of a component."""

    component: str
    name: str
    """A field of the component's config, `class`, or `missing` (the list of the pipeline's missing components)."""
    handled: str
    """Which values are accepted, and what they do."""
    rule: Rule
    fix: str
    """What to use instead of a refused value."""


_BASE = "use a Stable Diffusion 1.x, 2.x or XL model"
_PLAIN = "use an ordinary text-to-image base"
_VAE = "use an AutoencoderKL of Stable Diffusion"
_WITHOUT = "use a VAE without it"
_BETAS = "use a base whose scheduler has betas, such as DDIMScheduler"
_UNREAD = "no attention that could read a reference"
_FLAT = "use unquantized weights"

PROPERTIES: tuple[Property, ...] = (
    Property("pipeline", "class", ", ".join(PIPELINES), one_of(*PIPELINES, reason=""), _BASE),
    Property("pipeline", "missing", "safety checker, image encoder", missing_rule, "give a complete folder"),
    Property(
        "pipeline",
        "requires_aesthetics_score",
        "false",
        unset("an SDXL refiner"),
        "use the SDXL base, and the refiner as synthesize.refiner",
    ),
    Property("scheduler", "class", ", ".join(SCHEDULERS), scheduler_rule, _BETAS),
    Property(
        "scheduler",
        "prediction_type",
        "epsilon, v_prediction",
        one_of("epsilon", "v_prediction", None, reason="training has no loss for it"),
        "use a model that predicts epsilon or v_prediction",
    ),
    Property("scheduler", "beta_schedule", f"{', '.join(BETA_SCHEDULES)}; training's", beta_schedule_rule, _BETAS),
    Property("scheduler", "trained_betas", "training's betas", trained_betas_rule, "give one value per timestep"),
    Property("scheduler", "num_train_timesteps", "training draws timesteps below it", timesteps_rule, "use 1 or more"),
    Property("scheduler", "use_flow_sigmas", "false", unset("it does flow matching"), _BETAS),
    Property(
        "scheduler",
        "timestep_type",
        "discrete",
        one_of("discrete", None, reason="training draws whole timesteps"),
        _BETAS,
    ),
    Property("scheduler", "variance_type", "fixed variances", variance_rule, _PLAIN),
    Property("vae", "class", "AutoencoderKL, AutoencoderTiny", vae_rule, _VAE),
    Property("vae", "in_channels", "3", one_of(3, reason="pictures have 3"), _VAE),
    Property("vae", "out_channels", "3", one_of(3, reason="pictures have 3"), _VAE),
    Property("vae", "encoder_block_out_channels", "as many as the decoder's", levels_rule, _VAE),
    Property(
        "vae",
        "upsampling_scaling_factor",
        "2",
        one_of(2, None, reason="the encoder's levels have a factor of 2"),
        _VAE,
    ),
    Property("vae", "scaling_factor", "latents are multiplied by it", scaling_rule, "correct vae/config.json"),
    Property("vae", "latents_mean", "SDXL: subtracted from latents", statistics_rule, _WITHOUT),
    Property("vae", "latents_std", "SDXL: latents are divided by it", deviations_rule, _WITHOUT),
    Property("vae", "shift_factor", "0", shift_rule, _WITHOUT),
    Property("unet", "class", "UNet2DConditionModel", one_of("UNet2DConditionModel", reason=_UNREAD), _BASE),
    Property("unet", "in_channels", "the VAE's latent_channels, any number", in_channels_rule, _PLAIN),
    Property("unet", "out_channels", "as in_channels", out_channels_rule, _PLAIN),
    Property("unet", "sample_size", "one side, or height and width", sample_size_rule, "set it in unet/config.json"),
    Property("unet", "down_block_types", ", ".join(BLOCKS[:2]), blocks_rule, _BASE),
    Property("unet", "up_block_types", f"{', '.join(BLOCKS[2:])}; one with attention", up_blocks_rule, _BASE),
    Property(
        "unet",
        "mid_block_type",
        "UNetMidBlock2DCrossAttn, UNetMidBlock2D, none",
        one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", reason=_UNREAD),
        _BASE,
    ),
    Property("unet", "only_cross_attention", "false", unset(_UNREAD), _BASE),
    Property("unet", "dual_cross_attention", "false", unset("it reads two conditions"), _BASE),
    Property(
        "unet",
        "attention_type",
        "default",
        one_of("default", reason="it also reads boxes or pictures (GLIGEN)"),
        _PLAIN,
    ),
    Property("unet", "class_embed_type", "none", unset("it reads more than the text"), _PLAIN),
    Property("unet", "num_class_embeds", "none", unset("it reads more than the text"), _PLAIN),
    Property("unet", "encoder_hid_dim_type", "none", unset("it reads more than text embeds"), _PLAIN),
    Property("unet", "encoder_hid_dim", "none", unset("it reads more than text embeds"), _PLAIN),
    Property(
        "unet",
        "time_cond_proj_dim",
        "none",
        unset("guidance is distilled into it (LCM), but a reference needs a guidance scale of its own"),
        "use the model that it was distilled from",
    ),
    Property("unet", "addition_embed_type", "text_time for SDXL, else none", addition_rule, _BASE),
    Property(
        "unet", "projection_class_embeddings_input_dim", "SDXL: pooled embeds and six sizes", added_width_rule, _PLAIN
    ),
    Property("unet", "cross_attention_dim", "the sum of the text encoders' widths", text_width_rule, _PLAIN),
    Property(
        "text_encoder",
        "class",
        "CLIPTextModel",
        one_of("CLIPTextModel", reason="Stable Diffusion's pipelines expect CLIPTextModel"),
        _BASE,
    ),
    Property(
        "text_encoder_2",
        "class",
        "CLIPTextModelWithProjection",
        one_of("CLIPTextModelWithProjection", reason="SDXL's pipelines expect CLIPTextModelWithProjection"),
        _BASE,
    ),
    Property("tokenizer", "model_max_length", "any number of tokens", tokens_rule("text_encoder"), "lower it"),
    Property("tokenizer_2", "model_max_length", "as tokenizer's", second_tokens_rule, "make them equal"),
    Property("unet", "quantization_config", "none", unset("quantized weights cannot be trained"), _FLAT),
    Property("vae", "quantization_config", "none", unset("quantized weights have no dtype of their own"), _FLAT),
    Property("text_encoder", "quantization_config", "none", unset("quantized weights have no dtype"), _FLAT),
    Property("text_encoder_2", "quantization_config", "none", unset("quantized weights have no dtype"), _FLAT),
)
"""In the order in which they are checked. A component's class comes first."""


def unsupported(configs: Configs) -> list[str]:
    """What BootPIG cannot do with a base model, one predicate per property: "has unet.in_channels 9: …; use …".

    Args:
        configs: those that are known. Properties of other components are not checked.
    """
    known = dict(configs)
    problems = []
    for each in PROPERTIES:
        if each.component not in known:
            continue
        value = property_of(known, each.component, each.name)
        try:
            reason = each.rule(value, known)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            reason = "not a value that this field can have"
        if reason is None:
            continue
        if each.component == "pipeline" and each.name == "class":
            return [f"is a {value}; {each.fix}"]
        problems.append(f"has {each.component}.{each.name} {_shown(value)}: {reason}; {each.fix}")
        if each.name == "class":
            del known[each.component]  # its fields mean something else
    return problems


def component_configs(pipeline: Any) -> dict[str, dict[str, Any]]:
    """The configs of a loaded pipeline's components, for `unsupported`. Those that are None are left out."""
    family = "BootPIGXLPipeline" if hasattr(pipeline, "text_encoder_2") else "BootPIGPipeline"
    configs: dict[str, dict[str, Any]] = {"pipeline": {"_class_name": family}}
    for name in dict.fromkeys(each.component for each in PROPERTIES):
        wrapped = getattr(pipeline, name, None)
        component = getattr(wrapped, "_orig_mod", wrapped)  # torch.compile's
        if component is None:
            continue
        config = getattr(component, "config", {})
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        if hasattr(component, "model_max_length"):
            values["model_max_length"] = component.model_max_length
        configs[name] = {**values, "_class_name": type(component).__name__}
    return configs


def check_components(pipeline: Any) -> None:
    """Check the components of a loaded pipeline of any class.

    Raises:
        UnsupportedBase: BootPIG cannot use one of them.
    """
    if problems := unsupported(component_configs(pipeline)):
        raise UnsupportedBase(problems)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
