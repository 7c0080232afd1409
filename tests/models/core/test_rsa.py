"""The operator against the paper's formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from bootpig.models.core.attention import attention_with_lse, joined
from bootpig.models.core.rsa import (
    Pooling,
    ReferenceFeatures,
    RSAProcessor,
    install_rsa,
    keep_rsa,
    pool,
    self_attention_blocks,
)
from tests.models.networks import embeds, latents, sd15_like, sd_unet

CHANNELS, HEADS = 24, 3


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(CHANNELS, heads=HEADS, dim_head=CHANNELS // HEADS).double()


def tokens(rows: int, count: int, seed: int) -> Tensor:
    return torch.randn(rows, count, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def formula(attn: Attention, f: Tensor, refs: list[Tensor], key_scale: float = 1.0) -> Tensor:
    """W_o softmax(q(f) [k(f); k(f_ref)]^T / sqrt(d')) [v(f); v(f_ref)] of one row, head by head (eq. 3)."""
    width = CHANNELS // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        q = f @ attn.to_q.weight[part].T
        k = torch.cat([f @ attn.to_k.weight[part].T, *(key_scale * r @ attn.to_k.weight[part].T for r in refs)])
        v = torch.cat([r @ attn.to_v.weight[part].T for r in [f, *refs]])
        scores = torch.exp(q @ k.T / width**0.5)
        heads.append(scores / scores.sum(-1, keepdim=True) @ v)
    return torch.cat(heads, dim=-1) @ attn.to_out[0].weight.T + attn.to_out[0].bias


def rsa(attn: Attention, f: Tensor, refs: Tensor, attends: list[tuple[int, ...]], **config: object) -> Tensor:
    return RSAProcessor(0, **config)(attn, f, reference=ReferenceFeatures([refs], attends))  # type: ignore[arg-type]


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("key_scale", [1.0, 1.1])
def test_one_reference_is_equation_3(attention: Attention, key_scale: float, gradients: bool) -> None:
    f, refs = tokens(3, 7, 1), tokens(2, 5, 2)
    with torch.set_grad_enabled(gradients):
        out = rsa(attention, f, refs, [(1,), (0,), (1,)], key_scale=key_scale)
    for row, which in enumerate((1, 0, 1)):
        torch.testing.assert_close(out[row], formula(attention, f[row], [refs[which]], key_scale), atol=1e-12, rtol=0)


def test_no_reference_is_diffusers_own_bit_for_bit(attention: Attention) -> None:
    f = tokens(3, 7, 1)
    assert torch.equal(RSAProcessor(0)(attention, f), AttnProcessor2_0()(attention, f))


def test_rows_without_reference_among_rows_with_some(attention: Attention) -> None:
    f, refs = tokens(5, 7, 1), tokens(2, 5, 2)
    out = rsa(attention, f, refs, [(), (), (0,), (1, 0), ()])
    plain = AttnProcessor2_0()(attention, f)
    torch.testing.assert_close(out[[0, 1, 4]], plain[[0, 1, 4]], atol=1e-12, rtol=0)
    torch.testing.assert_close(out[2], formula(attention, f[2], [refs[0]]), atol=1e-12, rtol=0)


def pooled(attn: Attention, f: Tensor, refs: list[Tensor], pooling: Pooling) -> Tensor:
    """Equations 5 to 8, pixel by pixel."""
    own = formula(attn, f, [])
    outs = [formula(attn, f, [r]) for r in refs]
    result = torch.empty_like(own)
    for pixel in range(len(f)):
        norms = torch.stack([((o - own)[pixel] ** 2).sum().sqrt() for o in outs])
        weights = torch.exp(norms) / torch.exp(norms).sum()
        if pooling == "argmax":
            weights = torch.zeros_like(weights)
            weights[norms.argmax()] = 1
        if pooling == "average":
            weights = torch.full_like(weights, 1 / len(outs))
        result[pixel] = own[pixel] + sum(w * (o - own)[pixel] for w, o in zip(weights, outs, strict=True))
    return result


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("pooling", ["softmax", "argmax", "average"])
def test_several_references_are_pooled(attention: Attention, pooling: Pooling, gradients: bool) -> None:
    f, refs = tokens(2, 7, 1), tokens(4, 5, 2) * 3
    with torch.set_grad_enabled(gradients):
        out = rsa(attention, f, refs, [(0, 1, 2), (3, 1, 0)], pooling=pooling)
    assert out.requires_grad == gradients
    for row, which in enumerate([(0, 1, 2), (3, 1, 0)]):
        expected = pooled(attention, f[row], [refs[i] for i in which], pooling)
        torch.testing.assert_close(out[row], expected, atol=1e-10, rtol=0)


def test_concat_is_one_attention_over_all(attention: Attention) -> None:
    f, refs = tokens(1, 7, 1), tokens(3, 5, 2)
    out = rsa(attention, f, refs, [(0, 1, 2)], pooling="concat")
    torch.testing.assert_close(out[0], formula(attention, f[0], list(refs)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pooling", ["softmax", "argmax", "average", "concat"])
def test_order_of_references_changes_nothing(attention: Attention, pooling: Pooling) -> None:
    f, refs = tokens(1, 7, 1), tokens(3, 5, 2) * 3
    one = rsa(attention, f, refs, [(0, 1, 2)], pooling=pooling)
    other = rsa(attention, f, refs, [(2, 0, 1)], pooling=pooling)
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_the_same_reference_twice_is_that_reference(attention: Attention) -> None:
    f, refs = tokens(1, 7, 1), tokens(1, 5, 2)
    torch.testing.assert_close(rsa(attention, f, refs, [(0, 0)]), rsa(attention, f, refs, [(0,)]), atol=1e-12, rtol=0)


@torch.no_grad()
def test_attention_is_joined_however_far_apart_the_logits() -> None:
    q, k, v = (torch.randn(1, 2, 6, 8, dtype=torch.float64) for _ in range(3))
    for factor in (1e-3, 1.0, 300.0, -300.0):
        other = (k * factor, v + 1)
        both = [torch.cat(pair, dim=2) for pair in zip((k, v), other, strict=True)]
        expected = torch.softmax(q @ both[0].mT / 8**0.5, dim=-1) @ both[1]
        out = joined(attention_with_lse(q, k, v), attention_with_lse(q, *other))
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_half_precision_norms_do_not_overflow() -> None:
    own = torch.zeros(1, 1, 1280, dtype=torch.float16)
    # Norms of 107,000 and 143,000: beyond float16.
    near, far = torch.full_like(own, 3000.0), torch.full_like(own, 4000.0)
    assert torch.equal(pool(own, [near, far], "argmax"), far)
    assert torch.isfinite(pool(own, [near, far], "softmax")).all()


@torch.no_grad()
def test_rows_that_are_copies_are_attended_once(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    f, refs = tokens(2, 7, 1).repeat(3, 1, 1), tokens(3, 5, 2)
    attends: list[tuple[int, ...]] = [(), (), (0,), (2, 1), (0,), (2, 1)]
    expected = RSAProcessor(0)(attention, f, reference=ReferenceFeatures([refs], attends))
    rows: list[int] = []
    attention.to_q.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    out = RSAProcessor(0)(attention, f, reference=ReferenceFeatures([refs], attends, copies=3))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    assert rows == [4]
    # deeper layers have met the text: there, rows are no longer alike
    features = ReferenceFeatures([refs, refs], attends, copies=3)
    assert RSAProcessor(1)(attention, f, reference=features).shape == f.shape
    assert rows == [4, 6]


def test_rows_must_match(attention: Attention) -> None:
    with pytest.raises(ValueError, match="for 2 rows, the batch has 3"):
        rsa(attention, tokens(3, 7, 1), tokens(1, 5, 2), [(0,), (0,)])


def test_layers_come_in_the_order_in_which_the_unet_runs_them() -> None:
    unet = sd15_like()
    ran: list[str] = []
    for name, block in self_attention_blocks(unet):
        block.attn1.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    unet(latents(1), 10, embeds(1))
    assert ran == [name for name, _ in self_attention_blocks(unet)]
    assert len(ran) == 16


def test_a_unet_without_references_is_unchanged_bit_for_bit() -> None:
    unet = sd15_like()
    before = unet(latents(2), 10, embeds(2)).sample
    install_rsa(unet)
    assert torch.equal(unet(latents(2), 10, embeds(2)).sample, before)


def test_a_replaced_processor_is_noticed() -> None:
    unet = sd_unet()
    install_rsa(unet)
    keep_rsa(unet)
    unet.set_attention_slice(1)
    with pytest.raises(ValueError, match="SlicedAttnProcessor in place of RSAProcessor"):
        keep_rsa(unet)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="pooling: 'max' is unknown"):
        install_rsa(sd_unet(), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key_scale: 0"):
        install_rsa(sd_unet(), key_scale=0)
    with pytest.raises(ValueError, match="incompatible UNet"):
        install_rsa(
            sd_unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
        )
