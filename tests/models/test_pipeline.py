"""`BootPIGPipeline` end to end on random weights, against separate passes written out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import XFormersAttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from models.guidance import Denoiser, ReferenceRows, branch_weights
from models.pipeline import BootPIGPipeline
from models.reference_unet import record_features
from tests.models.networks import embeds, latents, sd_pipeline, train_a_little

PROMPT = "a photo of a mug, on a beach"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def shared(folder: Path) -> BootPIGPipeline:
    """Trained a little; tests that change it make their own."""
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    return pipeline


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def generate(pipeline: BootPIGPipeline, prompt: Any = PROMPT, references: Any = None, **kwargs: Any) -> Tensor:
    """Latents of a short run, seed 3 unless a generator is given."""
    kwargs = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(3), **kwargs}
    return pipeline(prompt, references, output_type="latent", **kwargs).images


def separate(d: Denoiser, x: Tensor, t: Tensor, refs: Sequence[Sequence[int]], eta: float, eta_im: float) -> Tensor:
    """Equation 4 by three passes, each with its own Reference UNet pass, image by image."""
    rows = d.references
    assert rows is not None
    noised = rows.noised(d.scheduler, t, 0)
    images = []
    for image in range(len(x)):
        chosen = list(refs[image])

        def run(embeds: Tensor, with_reference: bool, image: int = image, chosen: list[int] = chosen) -> Tensor:
            kwargs = None
            if with_reference:
                features = record_features(
                    d.reference_unet, noised[chosen], t, rows.prompt_embeds[chosen], [range(len(chosen))]
                )
                kwargs = {"reference": features}
            one = slice(image, image + 1)
            return d.unet(x[one], t, encoder_hidden_states=embeds[one], cross_attention_kwargs=kwargs).sample

        e_self = run(d.negative_prompt_embeds, False)
        e_reference = run(d.negative_prompt_embeds, True)
        e_text = run(d.prompt_embeds, True)
        images.append(e_self + eta_im * (e_reference - e_self) + eta * (e_text - e_reference))
    return torch.cat(images)


@pytest.mark.parametrize(("eta", "eta_im"), [(7.5, 5.0), (1.0, 0.5), (0.5, 1.0), (0.0, 3.0), (2.0, 2.0), (0.0, 0.0)])
@torch.no_grad()
def test_guidance_is_three_separate_passes(shared: BootPIGPipeline, eta: float, eta_im: float) -> None:
    attends = [(0,), (2, 1), (0, 1, 2)]
    rows = ReferenceRows(latents(3, 5), embeds(3, 6), ["a", "b", "c"], attends)
    shared.scheduler.set_timesteps(10)
    t = shared.scheduler.timesteps[2]
    denoiser = Denoiser(shared.unet, shared.reference_unet, shared.scheduler, embeds(3, 1), embeds(3, 2), rows)
    x = latents(3, 9)
    expected = separate(denoiser, x, t, attends, eta, eta_im)
    torch.testing.assert_close(denoiser.predict(x, t, 0, eta, eta_im), expected, atol=1e-4, rtol=1e-4)


def test_branches_without_weight_are_left_out() -> None:
    assert branch_weights(7.5, 5.0) == {"self": -4.0, "reference": -2.5, "text": 7.5}
    assert branch_weights(3.0, 1.0) == {"reference": -2.0, "text": 3.0}
    assert branch_weights(3.0, 3.0) == {"self": -2.0, "text": 3.0}
    assert branch_weights(0.0, 2.0) == {"self": -1.0, "reference": 2.0}
    assert branch_weights(1.0, None) == {"text": 1.0}


def test_one_pass_of_each_unet_a_step(shared: BootPIGPipeline) -> None:
    batches: dict[str, list[int]] = {"unet": [], "reference_unet": [], "text_encoder": []}
    handles = [
        getattr(shared, name).register_forward_pre_hook(lambda _, args, name=name: batches[name].append(len(args[0])))
        for name in batches
    ]
    one, two = picture(1), picture(2)
    generate(
        shared, [PROMPT, "a ball, far away"], [[one, two], [two]], reference_prompt="a mug", num_images_per_prompt=2
    )
    for handle in handles:
        handle.remove()
    # 2 prompts x 2 images x 3 branches; 2 distinct references; 2 prompts, the empty one and the reference's.
    assert batches == {"unet": [12] * 3, "reference_unet": [2] * 3, "text_encoder": [4]}


def test_reference_features_serve_for_some_steps(shared: BootPIGPipeline) -> None:
    passes: list[int] = []
    handle = shared.reference_unet.register_forward_pre_hook(lambda *_: passes.append(1))
    every = generate(shared, references=picture(1), num_inference_steps=5)
    assert len(passes) == 5
    assert torch.equal(generate(shared, references=picture(1), num_inference_steps=5, reference_refresh_steps=1), every)
    passes.clear()
    fewer = generate(shared, references=picture(1), num_inference_steps=5, reference_refresh_steps=2)
    handle.remove()
    assert len(passes) == 3
    assert torch.isfinite(fewer).all()
    assert not torch.equal(fewer, every)


def test_without_references_it_is_stable_diffusion(shared: BootPIGPipeline) -> None:
    plain = StableDiffusionPipeline(
        **{n: c for n, c in shared.components.items() if n != "reference_unet"}, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    expected = generate(plain, guidance_scale=4.0)  # type: ignore[arg-type]
    torch.testing.assert_close(generate(shared, guidance_scale=4.0), expected, atol=1e-4, rtol=1e-4)


SCHEDULERS = [
    UniPCMultistepScheduler,
    DDIMScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
]


@pytest.mark.parametrize("prediction_type", [pytest.param("epsilon", marks=pytest.mark.slow), "v_prediction"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(shared: BootPIGPipeline, kind: type[Any], prediction_type: str) -> None:
    own = shared.scheduler
    shared.scheduler = kind.from_config(own.config, prediction_type=prediction_type)
    try:
        out = generate(
            shared, references=picture(1), num_inference_steps=4, guidance_scale=2, reference_guidance_scale=2
        )
    finally:
        shared.scheduler = own
    assert torch.isfinite(out).all()
    assert out.std() > 0


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_reference_unet_sees_references_of_unit_variance(shared: BootPIGPipeline, kind: type[Any]) -> None:
    scheduler = kind.from_config(shared.scheduler.config)
    scheduler.set_timesteps(10)
    rows = ReferenceRows(latents(1, 5), embeds(1), ["a"], [(0,)])
    alphas = DDIMScheduler.from_config(shared.scheduler.config).alphas_cumprod
    for step, t in enumerate(scheduler.timesteps[:1]):
        noise = rows._noise("a", step)
        # Timesteps between two integers lie between their two mixtures.
        alpha = torch.from_numpy(np.interp(np.array([float(t)]), np.arange(1000), alphas.numpy())).float()
        expected = alpha.sqrt() * rows.latents + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(rows.noised(scheduler, t, step), expected, atol=2e-2, rtol=0)


def test_order_of_references_does_not_matter(shared: BootPIGPipeline) -> None:
    one = generate(shared, references=[picture(1), picture(2), picture(3)])
    other = generate(shared, references=[picture(3), picture(1), picture(2)])
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, generate(shared, references=[picture(1), picture(2)]), atol=1e-2)


def test_a_batch_is_its_images_one_by_one(shared: BootPIGPipeline) -> None:
    prompts, refs = [PROMPT, "a red ball"], [[picture(1)], [picture(2), picture(3)]]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    batch = generate(shared, prompts, refs, generator=generators(), num_images_per_prompt=2)
    for prompt in range(2):
        part = generate(
            shared,
            prompts[prompt],
            refs[prompt],
            generator=generators()[2 * prompt : 2 * prompt + 2],
            num_images_per_prompt=2,
        )
        torch.testing.assert_close(batch[2 * prompt : 2 * prompt + 2], part, atol=1e-3, rtol=1e-3)


def test_prepared_references_are_the_same_references(shared: BootPIGPipeline) -> None:
    prepared = shared.prepare_references([picture(1), picture(2)])
    direct = generate(shared, references=[picture(1), picture(2)])
    assert torch.equal(generate(shared, references=prepared), direct)
    both = generate(shared, [PROMPT, "a red ball"], prepared)
    apart = generate(shared, [PROMPT, "a red ball"], [[picture(1), picture(2)]] * 2)
    torch.testing.assert_close(both, apart, atol=1e-4, rtol=1e-4)


def test_reference_size_does_not_follow_the_result(shared: BootPIGPipeline) -> None:
    assert generate(shared, references=picture(1, (200, 120)), height=96, width=64).shape == (1, 16, 12, 8)
    assert shared.prepare_references(picture(1, (200, 120))).latents.shape == (1, 16, 8, 8)


def test_negative_prompt_takes_the_place_of_the_empty_one(shared: BootPIGPipeline) -> None:
    empty = generate(shared, references=picture(1))
    assert torch.equal(generate(shared, references=picture(1), negative_prompt=""), empty)
    assert not torch.allclose(generate(shared, references=picture(1), negative_prompt="blue"), empty, atol=1e-2)


def test_embeds_in_place_of_text(shared: BootPIGPipeline) -> None:
    both = shared.encode_prompt([PROMPT, ""], "cpu", 1, False)[0]
    given = generate(
        shared,
        None,
        picture(1),
        prompt_embeds=both[:1],
        negative_prompt_embeds=both[1:],
        reference_prompt_embeds=both[:1],
    )
    torch.testing.assert_close(given, generate(shared, references=picture(1)), atol=1e-4, rtol=1e-4)


def test_reference_caption_goes_by_the_model(folder: Path) -> None:
    pipeline = sd_pipeline(folder, reference_caption="object")
    train_a_little(pipeline)
    unasked = generate(pipeline, references=picture(1))
    assert torch.equal(unasked, generate(pipeline, references=picture(1), reference_prompt="a photo of a mug"))
    assert not torch.allclose(unasked, generate(pipeline, references=picture(1), reference_prompt=PROMPT), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    whole = generate(pipeline, references=[picture(1), picture(2)], guidance_scale=2, reference_guidance_scale=2)
    half = generate(
        pipeline.to(dtype), references=[picture(1), picture(2)], guidance_scale=2, reference_guidance_scale=2
    )
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), whole.flatten(), dim=0) > 0.99


def test_callbacks_steer(shared: BootPIGPipeline) -> None:
    seen = []

    def callback(
        pipeline: BootPIGPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        seen.append((step, sorted(tensors), tuple(tensors["prompt_embeds"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    out = generate(
        shared,
        references=picture(1),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert seen == [(step, ["latents", "prompt_embeds"], (1, 40, 32)) for step in range(3)]
    assert not out.any()


def test_outputs(shared: BootPIGPipeline) -> None:
    kwargs: dict[str, Any] = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    images = shared(PROMPT, picture(1), num_images_per_prompt=2, **kwargs).images
    assert [image.size for image in images] == [(64, 64)] * 2
    array, nsfw = shared(PROMPT, picture(1), output_type="np", return_dict=False, guidance_rescale=0.5, **kwargs)
    assert array.shape == (1, 64, 64, 3)
    assert nsfw is None


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
    base = StableDiffusionPipeline(
        **{n: c for n, c in shared.components.items() if n != "reference_unet"}, requires_safety_checker=False
    )
    base.save_pretrained(tmp_path)
    untrained = BootPIGPipeline.from_pretrained(tmp_path)
    untrained.set_progress_bar_config(disable=True)
    assert torch.equal(untrained.reference_unet.conv_in.weight, shared.unet.conv_in.weight)
    assert torch.isfinite(generate(untrained, references=picture(1))).all()


@pytest.mark.parametrize(
    ("prompt", "references", "kwargs", "message"),
    [
        (["a", "b"], [picture(1), picture(2)], {}, "2 images for 2 prompts"),
        (["a", "b"], picture(1), {}, "1 images for 2 prompts"),
        (["a", "b"], [[picture(1)]], {}, "for 2 prompts"),
        ("a", [], {}, "none of them empty"),
        (["a", "b"], [[picture(1)], []], {}, "needs at least one"),
        ("a", picture(1).convert("L"), {}, "mode L"),
        ("a", picture(1).resize((4, 4)), {}, "4x4 pixels"),
        ("a", Image.new("RGBA", (64, 64)), {}, "transparent everywhere"),
        ("a", np.full((64, 64, 3), np.nan, np.float32), {}, "NaN"),
        ("a", torch.zeros(64, 64), {}, "CHW"),
        ("a", None, {"reference_prompt": "b"}, "there are no reference_images"),
        ("a", picture(1), {"reference_refresh_steps": 0}, "reference_refresh_steps: 0 is below 1"),
        ("a", picture(1), {"reference_prompt": ["b", "c"]}, "reference_prompt: 2 for 1"),
        (["a", "b"], [[picture(1)]] * 2, {"negative_prompt": ["c"]}, "negative_prompt: 1 for 2"),
    ],
)
def test_bad_input_is_one_clear_error(
    shared: BootPIGPipeline, prompt: Any, references: Any, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        generate(shared, prompt, references, **kwargs)
    assert "\n" not in str(error.value)


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
    pipeline.enable_attention_slicing(1)


def use_xformers(pipeline: BootPIGPipeline) -> None:
    # what enable_xformers_memory_efficient_attention sets; the package itself needs a GPU
    pipeline.unet.set_attn_processor(XFormersAttnProcessor())


def fuse(pipeline: BootPIGPipeline) -> None:
    pipeline.fuse_qkv_projections(vae=False)


def add_ip_adapter(pipeline: BootPIGPipeline) -> None:
    pipeline.unet._load_ip_adapter_weights([ip_adapter(pipeline)])


@pytest.mark.parametrize("replace", [slice_attention, use_xformers, fuse, add_ip_adapter])
def test_a_replaced_processor_is_said(folder: Path, replace: Callable[[BootPIGPipeline], None]) -> None:
    pipeline = sd_pipeline(folder)
    replace(pipeline)
    with pytest.raises(ValueError, match="in place of RSAProcessor") as error:
        generate(pipeline, references=picture(1))
    assert "\n" not in str(error.value)


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
