"""Loads the pipeline that a training starts from, and checks that it fits the encoded data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig.models.pretrained.source import ModelSource, loading
from bootpig.stages.engine.contract import InputError
from bootpig.storage.jsonio import parse_json

if TYPE_CHECKING:
    from bootpig.models.core.lora import Lora
    from bootpig.models.pipelines.sd import BootPIGPipeline
    from bootpig.models.pipelines.xl import BootPIGXLPipeline
    from bootpig.stages.train.dataset import EncodedSample


def model_info(model: Path) -> dict[str, Any] | None:
    """The content of a trained model's `bootpig.json`. None if it cannot be read, which loading will report."""
    try:
        info = parse_json((model / "bootpig.json").read_bytes())
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def load_pipeline(sources: Mapping[str, ModelSource], lora: Lora | None = None) -> BootPIGPipeline | BootPIGXLPipeline:
    """The base pipeline in float32 on the CPU, with the trained weights of `init_from` if given. With `lora`, its
    Reference UNet has the same tensors as the base, and of `init_from` it has only the settings.

    Raises:
        ModelError: one of the two cannot be loaded.
    """
    import torch

    from bootpig.models.core.reference_unet import sharing_weights, truncate
    from bootpig.models.pipelines.bases import load_base
    from bootpig.models.pretrained.finite import check_pipeline, check_trained

    pipeline = load_base(sources["model"], torch.float32)
    check_pipeline(sources["model"], pipeline)
    if lora is not None:
        pipeline.register_modules(reference_unet=truncate(sharing_weights(pipeline.unet)))
    if "init_from" in sources:
        with loading("train.init_from", sources["init_from"].source):
            if lora is not None:
                pipeline.set_like(model_info(Path(sources["init_from"].path)) or {}, pipeline.reference_unet)
                return pipeline
            pipeline.load_bootpig(sources["init_from"].path)
            check_trained("train.init_from", Path(sources["init_from"].path), pipeline)
    return pipeline


def check_fit(source: str, pipeline: Any, sample: EncodedSample) -> None:
    """Check that the base model matches the encoded data.

    Raises:
        InputError: latents or text embeds have the wrong shape.
    """
    unet = pipeline.unet.config
    channels, *sides = sample.tensors["target"].shape
    sides += sample.tensors["references"].shape[-2:]
    width = sample.tensors["prompt_embeds"].shape[-1]
    factor = 2 ** (len(unet.block_out_channels) - 1)
    wanted = unet.cross_attention_dim
    widths = [wanted] if isinstance(wanted, int) else list(wanted)
    pooled = sample.tensors["pooled_prompt_embeds"].shape[-1] if "pooled_prompt_embeds" in sample.tensors else 0
    wanted_pooled = 0
    if unet.addition_embed_type == "text_time":  # the pooled embeds are followed by six sizes
        wanted_pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
    problems = []
    if channels != unet.in_channels:
        problems.append(f"expects latents with {unet.in_channels} channels, but encode made {channels}")
    if set(widths) != {width}:
        problems.append(f"expects text embeds of width {widths[0]}, but encode made {width}")
    if pooled != wanted_pooled:
        problems.append(f"expects pooled embeds of width {wanted_pooled}, but encode made {pooled}")
    if any(side % factor for side in sides):
        problems.append(f"needs latents divisible by {factor}, but encode made {_shapes(sample)}")
    if problems:
        raise InputError(f"train.model: {source!r} {'; '.join(problems)}; use the same model as encode.model")


def _shapes(sample: EncodedSample) -> str:
    """The sides of the latents: those of the target, and of the references if they are others."""
    sides = [sample.tensors[name].shape[-2:] for name in ("target", "references")]
    return " and ".join(dict.fromkeys(" x ".join(map(str, each)) for each in sides))
