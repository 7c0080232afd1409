"""What is trained, and that gradients are right however they are computed."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel

from bootpig.models.core.bootpig import BootPIG, TrainBase
from bootpig.models.core.rsa import self_attention_blocks
from tests.models.networks import embeds, latents, sd_unet, sdxl_conditions, sdxl_like

SD21 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def loss(model: BootPIG, *, use_reference: bool = True) -> torch.Tensor:
    noisy, refs = latents(2, 3), latents(2, 4)
    prediction = model(noisy, torch.tensor([10, 700]), embeds(2, 5), refs, embeds(2, 6), use_reference=use_reference)
    return torch.nn.functional.mse_loss(prediction, latents(2, 8))


@pytest.mark.parametrize(
    ("config", "layers", "millions", "whole"), [(SD21, 16, 49.6, 865.9), (SDXL, 70, 409.7, None)], ids=["sd21", "sdxl"]
)
def test_trained_set_at_true_size(config: dict[str, object], layers: int, millions: float, whole: float | None) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        if whole:
            assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == whole
        model = BootPIG.from_unet(unet)
    assert len(self_attention_blocks(model.unet)) == layers
    base = {name: p for name, p in model.unet.named_parameters() if p.requires_grad}
    assert round(sum(p.numel() for p in base.values()) / 1e6, 1) == millions
    assert all(".attn1." in name for name in base)
    assert len(base) == sum(".attn1." in name for name, _ in model.unet.named_parameters())
    assert all(p.requires_grad for p in model.reference_unet.parameters())


@pytest.mark.parametrize("train_base", ["none", "rsa", "all"])
@pytest.mark.parametrize("train_reference", [True, False])
def test_what_is_trained_gets_gradients_and_nothing_else(train_reference: bool, train_base: TrainBase) -> None:
    if not train_reference and train_base == "none":
        with pytest.raises(ValueError, match="nothing would be trained"):
            BootPIG.from_unet(sd_unet(), train_reference=False, train_base="none")
        return
    model = BootPIG.from_unet(sd_unet(), train_reference=train_reference, train_base=train_base)
    loss(model).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {
        name
        for name, _ in model.named_parameters()
        if (name.startswith("reference_unet.") and train_reference)
        or (name.startswith("unet.") and (train_base == "all" or (train_base == "rsa" and ".attn1." in name)))
    }
    assert moved == wanted
    assert set(model.trained_state()) == wanted


def test_starts_as_a_copy_and_shares_no_weights() -> None:
    unet = sd_unet()
    model = BootPIG.from_unet(unet)
    assert model.unet is unet
    assert torch.equal(model.reference_unet.conv_in.weight, unet.conv_in.weight)
    assert model.reference_unet.conv_in.weight.data_ptr() != unet.conv_in.weight.data_ptr()


def test_a_dropped_reference_is_plain_self_attention_with_zero_gradients() -> None:
    unet = sd_unet()
    plain = unet(latents(2, 3), torch.tensor([10, 700]), embeds(2, 5)).sample
    model = BootPIG.from_unet(unet)
    with torch.no_grad():
        for parameter in model.reference_unet.parameters():
            parameter.add_(1)
    prediction = model(
        latents(2, 3), torch.tensor([10, 700]), embeds(2, 5), latents(2, 4), embeds(2, 6), use_reference=False
    )
    assert torch.equal(prediction, plain)
    prediction.square().sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.reference_unet.parameters())
    assert all(p.grad is not None for p in model.unet.parameters() if p.requires_grad)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients() -> None:
    model = BootPIG.from_unet(sd_unet())
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing()
    one, two = loss(model), loss(other)
    assert torch.equal(one, two)
    one.backward()
    two.backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_loss_sees_the_reference_and_the_reference_caption() -> None:
    model = BootPIG.from_unet(sd_unet())
    args = (latents(1, 3), torch.tensor([10]), embeds(1, 5))
    one = model(*args, latents(1, 4), embeds(1, 6), use_reference=True)
    assert not torch.allclose(one, model(*args, latents(1, 9), embeds(1, 6), use_reference=True))
    assert not torch.allclose(one, model(*args, latents(1, 4), embeds(1, 9), use_reference=True))


def test_sdxl_conditions_reach_both_unets() -> None:
    model = BootPIG.from_unet(sdxl_like())
    conditions, others = sdxl_conditions(2), {**sdxl_conditions(2), "text_embeds": torch.zeros(2, 32)}

    def predict(base: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(
            latents(2, 3),
            torch.tensor([10, 700]),
            embeds(2, 5),
            latents(2, 4),
            embeds(2, 6),
            use_reference=True,
            added_cond_kwargs=base,
            reference_added_cond_kwargs=reference,
        )

    one = predict(conditions, conditions)
    assert not torch.equal(one, predict(others, conditions))
    assert not torch.equal(one, predict(conditions, others))


def test_trained_weights_are_float32_masters_of_a_half_base() -> None:
    model = BootPIG.from_unet(sd_unet().to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        loss(model).backward()


def test_parameter_groups() -> None:
    groups = BootPIG.from_unet(sd_unet()).parameter_groups(5e-6, 1e-6)
    assert [(g["name"], g["lr"]) for g in groups] == [("reference", 5e-6), ("base", 1e-6)]
    only = BootPIG.from_unet(sd_unet(), train_base="none").parameter_groups(5e-6, 1e-6)
    assert [g["name"] for g in only] == ["reference"]


def test_trained_state_goes_there_and_back() -> None:
    model = BootPIG.from_unet(sd_unet())
    state = {name: tensor + 1 for name, tensor in model.trained_state().items()}
    other = BootPIG.from_unet(sd_unet())
    other.load_trained_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.trained_state().items())
    state.pop(next(iter(state)))
    with pytest.raises(ValueError, match="1 tensors are missing"):
        other.load_trained_state(state)


@pytest.mark.slow
def test_compiles_without_a_break() -> None:
    model = BootPIG.from_unet(sd_unet())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    one, two = loss(model), loss(compiled)  # type: ignore[arg-type]
    torch.testing.assert_close(one, two)
    one.backward()
    two.backward()
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
    # its checkpoint is an ordinary one
    other = BootPIG.from_unet(sd_unet(1))
    other.load_trained_state(compiled.trained_state())
    assert all(torch.equal(tensor, other.trained_state()[name]) for name, tensor in model.trained_state().items())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_inductor_compiles_it() -> None:
    one_level = {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    model = BootPIG.from_unet(sd_unet(**one_level))
    # a kernel takes the compiler a second, a backward pass would double their number, vector code the time of each
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, options={"cpp.simdlen": 1})
    torch.testing.assert_close(loss(compiled), loss(model))  # type: ignore[arg-type]
    other = BootPIG.from_unet(sd_unet(1, **one_level))
    other.load_trained_state(compiled.trained_state())
    assert all(torch.equal(tensor, other.trained_state()[name]) for name, tensor in model.trained_state().items())
