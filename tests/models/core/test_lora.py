"""LoRA adapters in both UNets: shared weights, gradients for every one of them, and merging."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.core.lora import Lora, adapter_state, merge
from bootpig.models.core.reference_unet import copy_as_reference
from tests.models.networks import embeds, latents, sd15_like, sd21_like, sdxl_conditions, sdxl_like

LORA = Lora(4, 2, ("to_q", "to_k", "to_v", "to_out.0"))
WIDE = Lora(3, 6, ("to_q", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1"))
FAMILIES = [sd15_like, sd21_like, sdxl_like]


def predict(model: BootPIG, use_reference: bool = True) -> torch.Tensor:
    conditions = sdxl_conditions(2) if model.unet.config.addition_embed_type else None
    return model(
        latents(2),
        torch.tensor([30, 700]),
        embeds(2),
        latents(2, seed=4),
        embeds(2, seed=5),
        use_reference=use_reference,
        added_cond_kwargs=conditions,
        reference_added_cond_kwargs=conditions,
    )


def shake(model: BootPIG) -> None:
    """Make B something else than zero."""
    generator = torch.Generator().manual_seed(6)
    for name, tensor in model.trained_state().items():
        if ".lora_B." in name:
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [LORA, WIDE])
def test_adapters_start_as_nothing_and_all_are_trained(family: Callable[[], UNet2DConditionModel], lora: Lora) -> None:
    model = BootPIG.from_unet(family(), train_base="all", lora=lora)
    # frozen, because torch adds in another order where it needs gradients
    untrained = BootPIG.from_unet(family()).requires_grad_(False)
    with torch.no_grad():
        plain = predict(untrained)
        assert torch.equal(predict(model), plain)
    own = {p.data_ptr() for p in model.unet.parameters()}
    frozen = [p for p in model.reference_unet.parameters() if not p.requires_grad]
    assert frozen and all(p.data_ptr() in own for p in frozen)
    shake(model)
    changed = predict(model)
    assert (changed - plain).abs().max() > 1e-3
    for use_reference in (True, False):  # DDP waits for a gradient of every one
        model.zero_grad()
        predict(model, use_reference).square().mean().backward()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert not [name for name, p in trained if p.grad is None]
        if use_reference:
            # 8×8 latents are one token there, and a softmax over one key has no gradient but what rounding leaves
            single = ("reference_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.",)
            single += tuple(name.replace("to_q", "to_k") for name in single)
            assert not [name for name, p in trained if not p.grad.any() and not name.startswith(single)]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("lora", [LORA, WIDE])
def test_merged_adapters_compute_the_same(lora: Lora) -> None:
    unet = sd15_like()
    base, reference = copy.deepcopy(unet), copy_as_reference(unet)
    model = BootPIG.from_unet(unet, train_base="all", lora=lora)
    shake(model)
    for network, adapted in ((base, model.unet), (reference, model.reference_unet)):
        merge(network, adapter_state(adapted), lora.scale())
    merged = BootPIG(base, reference)
    torch.testing.assert_close(predict(merged), predict(model), rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        model = BootPIG.from_unet(sd15_like(), lora=LORA)
        shake(model)
        if again:
            model.enable_gradient_checkpointing()
        model.train()
        predict(model).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))
        before = torch.random.get_rng_state()
        unet = sd21_like()
        torch.manual_seed(len(states))
        states.append(BootPIG.from_unet(unet, lora=LORA, seed=seed).trained_state())
        assert torch.equal(torch.random.get_rng_state(), before)
    down = next(name for name in states[0] if ".lora_A." in name)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][down], states[2][down])
