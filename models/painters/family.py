"""What differs between families of text-to-image pipelines: guidance, negative prompt, sizes, batches, output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Configs = Mapping[str, Mapping[str, Any]]
"""The settings of a pipeline: "" → its model_index.json, and the name of each component → its config."""


def latent_factor(configs: Configs) -> int:
    """Picture pixels per latent along a side, from the VAE's config. 8 if that does not say."""
    vae = configs.get("vae", {})
    if "spatial_compression_ratio" in vae:  # HunyuanImage
        return int(vae["spatial_compression_ratio"])
    for name, less in (("encoder_block_out_channels", 1), ("block_out_channels", 1), ("temperal_downsample", 0)):
        if name in vae:
            return int(2 ** (len(vae[name]) - less))
    return 8


def patches(configs: Configs, usual: int = 2) -> int:
    """Pixels per token along a side of a transformer that reads latents in patches."""
    size = configs.get("transformer", {}).get("patch_size", usual)
    return latent_factor(configs) * int(size if isinstance(size, int) else size[-1])


def packed(configs: Configs) -> int:
    """Pixels per token of a transformer whose latents are packed 2×2 by the pipeline, whatever its patch size is."""
    return latent_factor(configs) * 2


def always(configs: Configs) -> bool:
    return True


def never(configs: Configs) -> bool:
    return False


def _nothing(configs: Configs) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """How the pipelines of one family are called."""

    name: str
    classes: tuple[str, ...]
    """Names of diffusers' pipeline classes."""
    multiple: Callable[[Configs], int] = latent_factor
    """Height and width must be multiples of it. Other sizes fail, or give a picture of another size."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The only (height, width) that the pipeline draws; any size if empty."""
    guidance: str = "guidance_scale"
    """The argument for the guidance scale."""
    guided: Callable[[Configs], bool] = always
    """Whether a guidance scale has an effect."""
    embedded: Callable[[Configs], bool] = never
    """Whether the guidance scale is an input of the network, which then runs once per step instead of twice."""
    negated: Callable[[Configs], bool] = always
    """Whether a negative prompt has an effect, with a guidance scale above `off`."""
    off: float = 1.0
    """Up to this guidance scale, the negative prompt is not read."""
    empty: str | None = None
    """The negative prompt to give where there is none, if guidance acts only beside one."""
    batches: bool = True
    """Whether several captions are drawn in one call. Not if a picture would depend on the others in the call."""
    output: str = "images"
    """The field of the result that holds the pictures."""
    fixed: Callable[[Configs], Mapping[str, Any]] = _nothing
    """More arguments."""
    note: str = ""
    """For the table of painters."""
