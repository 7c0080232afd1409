"""diffusers' switches do what they say, or are refused in one line and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict

from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import INPAINTING, draw

Make = Callable[[], Any]


@pytest.mark.parametrize(
    "switch",
    [
        lambda pipeline: pipeline.enable_attention_slicing(),
        lambda pipeline: pipeline.enable_attention_slicing("max"),
        lambda pipeline: pipeline.enable_xformers_memory_efficient_attention(),
        lambda pipeline: pipeline.fuse_qkv_projections(),
        lambda pipeline: pipeline.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter.bin"),
        lambda pipeline: pipeline.unet.set_default_attn_processor(),
    ],
    ids=["slicing", "slicing max", "xformers", "fused", "ip-adapter", "default processors"],
)
def test_what_would_replace_the_processors_is_refused(shared: Any, switch: Callable[[Any], None]) -> None:
    before = draw(shared)
    with pytest.raises(ValueError, match=r"\w") as error:
        switch(shared)
    assert "\n" not in str(error.value)
    assert torch.equal(draw(shared), before)


def test_undoing_what_was_never_done(shared: Any) -> None:
    before = draw(shared)
    shared.disable_attention_slicing()
    shared.disable_xformers_memory_efficient_attention()
    assert torch.equal(draw(shared), before)


def test_freeu(shared: Any, kind: str) -> None:
    before = draw(shared, output_type="np")
    shared.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    changed = draw(shared, output_type="np")
    shared.disable_freeu()
    assert np.array_equal(draw(shared, output_type="np"), before)
    differs = np.abs(changed - before).max(axis=(0, 3)) > 0.01
    assert differs[16:48, 16:48].any()
    if kind in INPAINTING:
        differs[16:48, 16:48] = False
        assert not differs.any()


def test_vae_slicing_and_tiling(shared: Any) -> None:
    two = {"prompt": ["a mug", "a ball"], "reference_images": [[picture(1)], [picture(2)]], "output_type": "np"}
    before = draw(shared, **two)
    shared.vae.enable_slicing()
    decoded: list[int] = []
    handle = shared.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    np.testing.assert_allclose(draw(shared, **two), before, atol=2 / 255)
    handle.remove()
    assert decoded == [1, 1]
    shared.vae.disable_slicing()
    shared.vae.enable_tiling()
    tiled = draw(shared, output_type="np", height=128, width=96)
    shared.vae.disable_tiling()
    assert np.isfinite(tiled).all()
    assert np.array_equal(draw(shared, **two), before)


def test_fused_projections_of_the_vae(shared: Any) -> None:
    before = draw(shared, output_type="np")
    shared.fuse_qkv_projections(unet=False)
    np.testing.assert_allclose(draw(shared, output_type="np"), before, atol=2 / 255)
    shared.unfuse_qkv_projections(unet=False)


def test_model_offload_again_and_undone(fresh: Make) -> None:
    pipeline = fresh()
    before = draw(pipeline, output_type="np")
    for _ in range(2):
        pipeline.enable_model_cpu_offload(device="cpu")
        np.testing.assert_allclose(draw(pipeline, output_type="np"), before, atol=1e-5)
    pipeline.remove_all_hooks()
    np.testing.assert_allclose(draw(pipeline, output_type="np"), before, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload(fresh: Make, options: dict[str, Any]) -> None:
    pipeline = fresh()
    before = draw(pipeline, output_type="np")
    cpu = torch.device("cpu")
    pipeline.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)
    np.testing.assert_allclose(draw(pipeline, output_type="np"), before, atol=1e-5)


def test_an_offloaded_pipeline_s_parts_in_a_second_one(fresh: Make, kind: str) -> None:
    pipeline = fresh()
    before = draw(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    draw(pipeline)
    second = type(pipeline)(**pipeline.components, **({"add_watermarker": False} if kind.startswith("xl") else {}))
    second.set_progress_bar_config(disable=True)
    second.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(draw(second), before)


def add_lora(pipeline: Any, folder: Path) -> None:
    """Save a random LoRA of the base UNet, as diffusers' training scripts do, and leave the pipeline without it."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(5)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    kind = StableDiffusionXLPipeline if hasattr(pipeline, "text_encoder_2") else StableDiffusionPipeline
    kind.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    pipeline.unload_lora_weights()


def test_a_lora_of_the_base(fresh: Make, tmp_path: Path) -> None:
    pipeline = fresh()
    without = draw(pipeline)
    add_lora(pipeline, tmp_path / "lora")
    torch.testing.assert_close(draw(pipeline), without)
    pipeline.load_lora_weights(tmp_path / "lora", adapter_name="style")
    loaded = draw(pipeline)
    assert not torch.allclose(loaded, without, atol=1e-2)
    torch.testing.assert_close(draw(pipeline, cross_attention_kwargs={"scale": 0.0}), without)
    for save in (pipeline.save_pretrained, pipeline.save_bootpig):
        with pytest.raises(ValueError, match="a LoRA is loaded"):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipeline.set_adapters("style", 0.0)
    torch.testing.assert_close(draw(pipeline), without)
    pipeline.set_adapters("style", 1.0)
    pipeline.fuse_lora()
    torch.testing.assert_close(draw(pipeline), loaded, atol=1e-3, rtol=1e-3)
    pipeline.unfuse_lora()
    torch.testing.assert_close(draw(pipeline), loaded, atol=1e-3, rtol=1e-3)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(draw(pipeline), loaded, atol=1e-3, rtol=1e-3)
    pipeline.save_pretrained(tmp_path / "saved")


@pytest.mark.slow
def test_a_compiled_unet(fresh: Make, tmp_path: Path) -> None:
    pipeline = fresh()
    before = draw(pipeline)
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    pipeline.reference_unet = torch.compile(pipeline.reference_unet, backend="eager")
    torch.testing.assert_close(draw(pipeline), before, atol=1e-4, rtol=1e-4)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(loaded), before, atol=1e-4, rtol=1e-4)
