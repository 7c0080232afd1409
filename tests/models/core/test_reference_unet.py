"""The truncated Reference UNet yields what the whole one would, and is smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from bootpig.models.core.reference_unet import copy_as_reference, record_features, restore, truncate
from bootpig.models.core.rsa import self_attention_blocks
from tests.models.networks import embeds, latents, sd15_like, sd21_like, sd_unet, sdxl_conditions, sdxl_like

MAKES: list[Callable[[], UNet2DConditionModel]] = [sd_unet, sd15_like, sd21_like, sdxl_like]


def conditions(unet: UNet2DConditionModel, rows: int) -> dict[str, torch.Tensor] | None:
    return sdxl_conditions(rows) if unet.config.addition_embed_type else None


@pytest.mark.parametrize("make", MAKES)
def test_features_are_bit_identical_to_the_whole_unet(make: Callable[[], UNet2DConditionModel]) -> None:
    unet = make()
    seen: list[torch.Tensor] = []
    for _, block in self_attention_blocks(unet):
        block.attn1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unet(latents(2), 300, embeds(2), added_cond_kwargs=conditions(unet, 2))

    reference = copy_as_reference(make())
    features = record_features(reference, latents(2), torch.tensor(300), embeds(2), [(0,), (1,)], conditions(unet, 2))
    assert len(features.layers) == len(seen)
    assert all(torch.equal(one, other) for one, other in zip(features.layers, seen, strict=True))


@pytest.mark.parametrize("make", MAKES)
def test_every_parameter_left_is_needed(make: Callable[[], UNet2DConditionModel]) -> None:
    reference = copy_as_reference(make())
    features = record_features(reference, latents(1), torch.tensor(300), embeds(1), [(0,)], conditions(reference, 1))
    sum(layer.square().sum() for layer in features.layers).backward()  # type: ignore[union-attr]
    assert [name for name, p in reference.named_parameters() if p.grad is None] == []
    whole = make()
    assert sum(p.numel() for p in reference.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("make", MAKES)
def test_saved_as_an_ordinary_unet(make: Callable[[], UNet2DConditionModel], tmp_path: Path) -> None:
    base, reference = make(), copy_as_reference(make())
    with torch.no_grad():
        reference.conv_in.weight.add_(1)
    restore(reference, base).save_pretrained(tmp_path)
    loaded, report = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == []
    assert report["unexpected_keys"] == []
    again = truncate(loaded).state_dict()
    assert again.keys() == reference.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in reference.state_dict().items())


def test_restoring_from_another_make_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the same architecture"):
        restore(copy_as_reference(sd15_like()), sd_unet())


def test_truncating_twice_is_truncating_once() -> None:
    reference = copy_as_reference(sd_unet())
    names = list(reference.state_dict())
    assert list(truncate(reference).state_dict()) == names


def test_a_replaced_processor_is_said() -> None:
    reference = copy_as_reference(sd_unet())
    reference.set_attention_slice(1)
    with pytest.raises(ValueError, match="6 of 7 self-attention layers of the Reference UNet recorded nothing"):
        record_features(reference, latents(1), torch.tensor(300), embeds(1), [(0,)])
