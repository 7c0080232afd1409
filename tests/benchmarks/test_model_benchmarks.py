"""The model benchmarks run, and both implementations agree. Speed is not tested."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu, inference, networks, picture, train_step


@pytest.mark.slow
def test_a_step_is_the_published_step() -> None:
    found = inference.measure(images=2, references=2, rounds=1, width=64, latents=8)
    assert float(found["largest_difference"]) < 1e-3
    assert float(found["operations_ratio"]) > 1
    assert float(found["operations_ratio_sd21"]) > 1.12
    assert {"ratio", "value", "baseline", "unit"} <= found.keys()


@pytest.mark.slow
def test_a_picture_costs_less_than_its_steps() -> None:
    found = picture.measure(images=2, references=2, rounds=1, width=64, latents=8)
    assert float(found["operations_ratio"]) > 1.4
    assert float(found["operations_ratio_sd21"]) > 1.6
    assert {"ratio", "value", "baseline", "unit"} <= found.keys()


@pytest.mark.slow
def test_both_loops_take_the_same_gradients() -> None:
    batch = train_step.Batch(2, 8)
    encoders = train_step.Encoders(batch, 8, 64, 8)
    with batch.precision():
        stored = encoders()
    ours = train_step.Ours(batch, stored, networks.unet(64, 8))
    published = train_step.Published(batch, encoders, networks.unet(64, 8))
    losses = ours.loss(), published.loss()
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    for loss in losses:
        loss.backward()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    for unet in ("unet", "reference_unet"):
        ways = (ours.model, published)
        one, other = (getattr(way, unet).get_parameter(name).grad.flatten() for way in ways)
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99
    before = published.unet.get_parameter(name).detach().clone()
    train_step.update(published)
    assert not torch.equal(before, published.unet.get_parameter(name))


@pytest.mark.slow
def test_the_gpu_program_runs_on_what_there_is() -> None:
    setup = gpu.Setup("cpu", 64, 8, 8, (1,), (1,), ((False, False, False), (True, False, True)), 64, 2, 1, 0)
    rate = gpu.matmul_rate(setup)
    rows = [*gpu.training(setup, rate), *gpu.denoising(setup)]
    assert [row["way"] for row in rows] == ["published", "ours", "ours", "ours", "published"]
    assert all(float(row.get("samples_per_second") or row.get("images_per_second") or 0) > 0 for row in rows)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.run()
