"""What becomes of a `BootPIGPipeline` that is saved, loaded, offloaded, compiled, or has parts of others put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import XFormersAttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from bootpig.models.core.rsa import self_attention_blocks
from bootpig.models.pipelines.sd import BootPIGPipeline
from tests.models.drawing import generate, picture
from tests.models.networks import as_base, sd_pipeline, train_a_little


def test_what_was_trained_goes_there_and_back(folder: Path, tmp_path: Path) -> None:
    trained = sd_pipeline(folder, key_scale=1.1, pooling="argmax", reference_caption="object")
    train_a_little(trained)
    trained.save_bootpig(tmp_path / "model", {"base": "toy", "recipe": {"steps": 3}})
    fresh = sd_pipeline(folder)
    fresh.scheduler = DDIMScheduler.from_config(fresh.scheduler.config, prediction_type="epsilon")
    refs = [picture(1), picture(2)]
    assert not torch.allclose(generate(fresh, references=refs), generate(trained, references=refs), atol=1e-2)
    info = fresh.load_bootpig(tmp_path / "model")
    assert (info["base"], info["recipe"], info["prediction_type"]) == ("toy", {"steps": 3}, "v_prediction")
    assert (fresh.config.key_scale, fresh.config.pooling, fresh.config.reference_caption) == (1.1, "argmax", "object")
    settings = {
        (block.attn1.processor.key_scale, block.attn1.processor.pooling)
        for _, block in self_attention_blocks(fresh.unet)
    }
    assert settings == {(1.1, "argmax")}, "they reach the layers"
    assert torch.equal(generate(fresh, references=refs), generate(trained, references=refs))


def test_saving_twice_writes_the_same_bytes(shared: BootPIGPipeline, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shared.save_bootpig(tmp_path / name, {"base": "toy"}, dtype=torch.float16)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(f) for f in files] == [
        "README.md",
        "bootpig.json",
        "reference_unet/config.json",
        "reference_unet/diffusion_pytorch_model.safetensors",
        "rsa.safetensors",
    ]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert str(tmp_path) not in (tmp_path / "one" / "reference_unet" / "config.json").read_text()


def test_the_commit_of_a_base_from_the_hub_is_written_down(
    shared: BootPIGPipeline, folder: Path, tmp_path: Path
) -> None:
    commit, kept = "c" * 40, tmp_path / "cache" / "models--someone--base"
    as_base(shared).save_pretrained(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    pipeline = BootPIGPipeline.from_pretrained("someone/base", cache_dir=tmp_path / "cache", local_files_only=True)
    pipeline.save_bootpig(tmp_path / "model")
    info = json.loads((tmp_path / "model" / "bootpig.json").read_text())
    assert (info["base"], info["revision"]) == ("someone/base", commit)


@pytest.mark.parametrize("part", ["rsa.safetensors", "reference_unet", "bootpig.json"])
def test_one_part_without_the_other_is_refused(
    shared: BootPIGPipeline, folder: Path, tmp_path: Path, part: str
) -> None:
    shared.save_bootpig(tmp_path / "model", {"base": "toy"})
    (tmp_path / "model" / part).rename(tmp_path / "elsewhere")
    fresh = sd_pipeline(folder)
    before = {name: tensor.clone() for name, tensor in fresh.unet.state_dict().items()}
    with pytest.raises(ValueError, match=part):
        fresh.load_bootpig(tmp_path / "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.unet.state_dict().items())


def test_damaged_or_foreign_weights_are_refused(shared: BootPIGPipeline, folder: Path, tmp_path: Path) -> None:
    shared.save_bootpig(tmp_path / "model", {"base": "toy"})
    whole = (tmp_path / "model" / "rsa.safetensors").read_bytes()
    (tmp_path / "model" / "rsa.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        sd_pipeline(folder).load_bootpig(tmp_path / "model")
    (tmp_path / "model" / "rsa.safetensors").write_bytes(whole)
    info = json.loads((tmp_path / "model" / "bootpig.json").read_text())
    (tmp_path / "model" / "bootpig.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(ValueError, match="format 1"):
        sd_pipeline(folder).load_bootpig(tmp_path / "model")


def test_from_a_base_folder(shared: BootPIGPipeline, tmp_path: Path) -> None:
    as_base(shared).save_pretrained(tmp_path)
    untrained = BootPIGPipeline.from_pretrained(tmp_path)
    untrained.set_progress_bar_config(disable=True)
    assert torch.equal(untrained.reference_unet.conv_in.weight, shared.unet.conv_in.weight)
    assert torch.isfinite(generate(untrained, references=picture(1))).all()


def ip_adapter(pipeline: BootPIGPipeline) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP-Adapter for the pipeline's UNet, as its checkpoints name them."""
    weights = {}
    layers = [name.removesuffix(".processor") for name in pipeline.unet.attn_processors if ".attn2." in name]
    for number, layer in enumerate(layers):
        for name in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * number + 1}.{name}.weight"] = torch.zeros(
                pipeline.unet.get_submodule(layer).to_k.weight.shape
            )
    width = pipeline.unet.config.cross_attention_dim
    projection = {"proj.weight": torch.zeros(4 * width, 8), "proj.bias": torch.zeros(4 * width)}
    return {"image_proj": {**projection, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}} | {
        "ip_adapter": weights
    }


def slice_attention(pipeline: BootPIGPipeline) -> None:
    pipeline.unet.set_attention_slice(1)


def use_xformers(pipeline: BootPIGPipeline) -> None:
    # what enable_xformers_memory_efficient_attention sets; the package itself needs a GPU
    pipeline.unet.set_attn_processor(XFormersAttnProcessor())


def fuse(pipeline: BootPIGPipeline) -> None:
    pipeline.unet.fuse_qkv_projections()


def add_ip_adapter(pipeline: BootPIGPipeline) -> None:
    pipeline.unet._load_ip_adapter_weights([ip_adapter(pipeline)])


@pytest.mark.parametrize(
    ("replace", "undo"),
    [
        (slice_attention, BootPIGPipeline.disable_attention_slicing),
        (use_xformers, BootPIGPipeline.disable_xformers_memory_efficient_attention),
        (fuse, lambda pipeline: pipeline.unet.unfuse_qkv_projections()),
        (add_ip_adapter, BootPIGPipeline.unload_ip_adapter),
    ],
)
def test_a_replaced_processor_is_said_and_undone(
    folder: Path, replace: Callable[[BootPIGPipeline], None], undo: Callable[[BootPIGPipeline], None]
) -> None:
    pipeline = sd_pipeline(folder)
    before = generate(pipeline, references=picture(1))
    replace(pipeline)
    with pytest.raises(ValueError, match="in place of RSAProcessor") as error:
        generate(pipeline, references=picture(1))
    assert "\n" not in str(error.value)
    undo(pipeline)
    assert torch.equal(generate(pipeline, references=picture(1)), before)


def test_the_reference_unet_s_processors_are_said_and_undone(folder: Path) -> None:
    pipeline = sd_pipeline(folder)
    before = generate(pipeline, references=picture(1))
    pipeline.reference_unet.set_attention_slice(1)
    with pytest.raises(ValueError, match="in place of RecordingProcessor"):
        generate(pipeline, references=picture(1))
    pipeline.disable_attention_slicing()
    assert torch.equal(generate(pipeline, references=picture(1)), before)


def test_a_lora_is_loaded_and_unloaded(folder: Path, tmp_path: Path) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    without = generate(pipeline, references=[picture(1), picture(2)])
    pipeline.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    )
    state = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)

    fresh = sd_pipeline(folder)
    train_a_little(fresh)
    fresh.load_lora_weights(tmp_path)
    changed = generate(fresh, references=[picture(1), picture(2)])
    torch.testing.assert_close(changed, generate(pipeline, references=[picture(1), picture(2)]))
    assert not torch.allclose(changed, without, atol=1e-2)
    weaker = generate(fresh, references=[picture(1), picture(2)], cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(weaker, without)
    fresh.unload_lora_weights()
    torch.testing.assert_close(generate(fresh, references=[picture(1), picture(2)]), without)


def test_offloaded_it_draws_the_same_and_the_reference_unet_is_not_moved(folder: Path) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    expected = generate(pipeline, references=picture(1))
    pipeline.enable_model_cpu_offload(device="cpu")  # a GPU's hooks; only what they move stays where it is
    moved = {name for name in ("unet", "vae", "text_encoder", "reference_unet") if hooked(getattr(pipeline, name))}
    assert moved == {"unet", "vae", "text_encoder"}
    torch.testing.assert_close(generate(pipeline, references=picture(1)), expected)


def test_offloaded_layer_by_layer_the_reference_unet_stays_on_the_device(folder: Path) -> None:
    pipeline = sd_pipeline(folder)
    # "meta" stands for the device: nothing can be drawn there, but one sees what is moved
    pipeline.enable_sequential_cpu_offload(device="meta")
    moved = {name for name in ("unet", "vae", "text_encoder", "reference_unet") if hooked(getattr(pipeline, name))}
    assert moved == {"unet", "vae", "text_encoder"}
    assert {p.device.type for p in pipeline.reference_unet.parameters()} == {"meta"}


def test_offloaded_layer_by_layer_it_draws_the_same(folder: Path) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    expected = generate(pipeline, references=picture(1))
    # What enable_sequential_cpu_offload(device="cpu") does, but for its "cpu:0": with that name of the CPU, accelerate
    # fails under diffusers' own pipelines too.
    for name in ("unet", "vae", "text_encoder"):
        cpu_offload(getattr(pipeline, name), torch.device("cpu"))
    assert {p.device.type for p in pipeline.unet.parameters()} == {"meta"}
    assert torch.equal(generate(pipeline, references=picture(1)), expected)


def hooked(module: torch.nn.Module) -> bool:
    return any(hasattr(part, "_hf_hook") for part in module.modules())


@pytest.mark.slow
def test_compiled_it_draws_and_saves_the_same(folder: Path, tmp_path: Path) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    expected = generate(pipeline, references=[picture(1), picture(2)], num_inference_steps=2)
    pipeline.save_bootpig(tmp_path / "plain", {"base": "toy"})
    pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, backend="aot_eager")
    pipeline.reference_unet = torch.compile(pipeline.reference_unet, fullgraph=True, backend="aot_eager")
    out = generate(pipeline, references=[picture(1), picture(2)], num_inference_steps=2)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    pipeline.save_bootpig(tmp_path / "compiled", {"base": "toy"})
    for file in ("rsa.safetensors", "reference_unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "compiled" / file).read_bytes()
    fresh = sd_pipeline(folder)
    fresh.load_bootpig(tmp_path / "compiled")
    assert torch.equal(generate(fresh, references=[picture(1), picture(2)], num_inference_steps=2), expected)
