"""The encode stage: computes the VAE latents and text embeddings that training reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from bootpig.models.pipelines.base_check import base_problems
from bootpig.models.pipelines.reference_captions import ReferenceCaption, object_caption
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems
from bootpig.models.pretrained.source import ENCODERS, PIPELINE, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.engine.contract import InputError, MapStage, Sample, StageConfig
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.fields import BatchSize, Device, Dtype, ModelName, Revision
from bootpig.stages.engine.memory import Memory
from bootpig.stages.pictures import decode_pngs, picture_size

if TYPE_CHECKING:
    import torch

    from bootpig.models.pretrained.encoders import LatentEncoder

TOKENS = 77
"""Of CLIP's prompt embeds; for estimates, like `POOLED`, the width of SDXL's pooled embeds."""
POOLED = 1280


class EncodeConfig(StageConfig):
    """The base model that will be trained, and the text for its Reference UNet."""

    model: ModelName = Field(
        description="The base text-to-image model, a diffusers pipeline: a local folder or a hub id."
    )
    revision: Revision = None
    reference_caption: ReferenceCaption = Field(
        default="caption",
        description="Text for the Reference UNet: the whole caption (paper) or only the part before the first comma "
        "(published code).",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: BatchSize = 8


class Encode(MapStage):
    """Target and references → `<id>.safetensors`, all float16.

    `target` (C, h, w) and `references` (K, C, h', w') are posterior modes, scaled for the UNet. `prompt_embeds` and
    `reference_prompt_embeds` are (S, D). Models with pooled embeds (SDXL) also get `pooled_…` (P). The embeds of the
    reference are left out if they equal those of the caption. If the pictures of a run have several sizes, rows have
    the target's, which train needs to form batches.
    """

    name = "encode"
    upstream = ("augment",)
    config_class = EncodeConfig
    config: EncodeConfig
    columns: ClassVar[pa.Schema] = pa.schema([])
    optional_columns: ClassVar[pa.Schema] = pa.schema([("height", pa.int32()), ("width", pa.int32())])  # in pixels
    reasons: ClassVar[Mapping[str, str]] = {"not_finite": "a latent or an embedding does not fit float16"}
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"not_finite": ("dtype",)}

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    def batch_key(self, sample: Sample) -> tuple[int, int] | None:
        return picture_size(sample.files["target.png"])

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        lookups = {"model": lambda: resolve("encode.model", c.model, c.revision, PIPELINE, ENCODERS)}
        return resolve_all(self.name, lookups)

    def check_models(self) -> list[str]:
        source = self.models()["model"]
        return pipeline_problems(source) or base_problems(source)

    def estimate(self, work: Workload) -> Estimate:
        pictures, pixels = 1 + work.above.references, work.above.pixels
        c = self.config
        unet = sizes.unet_config(c.model)
        pooled = POOLED if unet["addition_embed_type"] else 0
        numbers = pictures * unet["in_channels"] * pixels / 64 + 2 * (TOKENS * unet["cross_attention_dim"] + pooled)
        return Estimate(
            replace(work.above, base=self.config.model),
            tflop=work.samples * (pictures * sizes.vae_encode_tflop(self.config.model, pixels)),
            stored_bytes=work.samples * (2 * numbers),
            memory=Memory(sizes.encoding_bytes(c.model, c.dtype, c.batch_size, pixels), "estimated"),
            assumptions=(
                sizes.ASSUMPTION,
                sizes.MEMORY_ASSUMPTION,
                f"encoded samples: float16 latents and embeds of {TOKENS} tokens",
            ),
        )

    def setup(self) -> None:
        from bootpig.models.devices import torch_device, torch_dtype
        from bootpig.models.pretrained.encoders import LatentEncoder

        self._encoder: LatentEncoder = LatentEncoder(
            self.models()["model"],
            device=torch_device("encode.device", self.config.device),
            dtype=torch_dtype(self.config.dtype),
        )

    def teardown(self) -> None:
        del self._encoder

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        import torch

        count = sum(name.startswith("reference") for name in samples[0].files)
        columns = [self._latents(samples, name) for name in ("target", *(f"reference{k}" for k in range(count)))]
        captions = [sample.meta["caption"] for sample in samples]
        texts = captions if self.config.reference_caption == "caption" else [object_caption(c) for c in captions]
        embeds = self._encoder.prompt_embeds(captions)
        # equal texts are stored once: train uses the caption's embeds if there are no others
        reference_embeds = {} if texts == captions else self._encoder.prompt_embeds(texts)
        results = []
        for i, sample in enumerate(samples):
            tensors = {"target": columns[0][i], "references": torch.stack([column[i] for column in columns[1:]])}
            tensors |= {name: rows[i] for name, rows in embeds.items()}
            tensors |= {_reference_name(name): rows[i] for name, rows in reference_embeds.items()}
            results.append(_finish(sample, tensors))
        return results

    def _latents(self, samples: Sequence[Sample], name: str) -> torch.Tensor:
        """The latents of the samples' pictures `<name>.png`: N×C×h×w float32."""
        pictures = np.stack([np.asarray(p) for p in decode_pngs([sample.files[f"{name}.png"] for sample in samples])])
        height, width = pictures.shape[1:3]
        factor = self._encoder.factor
        if height % factor or width % factor:
            raise InputError(
                f"encode: {width}x{height} pictures are not divisible by {factor}, the downscaling factor of "
                f"encode.model's VAE; set augment.size, or the sizes of synthesize, to multiples of {factor}"
            )
        return self._encoder.latents(pictures)


def _reference_name(name: str) -> str:
    """`prompt_embeds` → `reference_prompt_embeds`, `pooled_prompt_embeds` → `pooled_reference_prompt_embeds`."""
    return name.replace("prompt_embeds", "reference_prompt_embeds")


def _finish(sample: Sample, tensors: Mapping[str, torch.Tensor]) -> Sample:
    import torch
    from safetensors.torch import save

    stored = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in stored.values()):
        return sample.rejected("not_finite")
    size = dict(zip(("height", "width"), sample.meta.get("size", ()), strict=False))
    return sample.ok(files={"safetensors": save(stored)}, **size)
