"""Pictures from a real diffusers pipeline with random weights: per-sample seeds, checks, rejections."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from pydantic import ValidationError
from transformers import CLIPConfig, CLIPImageProcessor

from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.contract import Sample
from bootpig.stages.pictures import decode_png
from bootpig.stages.synthesize.config import SynthesizeConfig
from bootpig.stages.synthesize.stage import Synthesize
from tests.models.families import save_refiner, save_sdxl
from tests.stages.samples import captioned
from tests.stages.train.training_data import save_base

CAPTIONS = ("A photo of a mug, on the table", "A photo of a teapot, on the table", "A photo of a mug, of a mug")
SAMPLES = [captioned(caption, f"{i:016d}") for i, caption in enumerate(CAPTIONS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def config(model: Path, **changes) -> SynthesizeConfig:
    values = {"model": str(model), "height": 16, "width": 24, "steps": 2, "device": "cpu", "min_contrast": 0.5}
    return SynthesizeConfig(**{**values, **changes})


def paint(settings: SynthesizeConfig, samples: list[Sample] = SAMPLES, seed: int = 0) -> list[Sample]:
    stage = Synthesize(settings, seed)
    stage.setup()
    made = stage.process(samples)
    stage.teardown()
    return made


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(decode_png(sample.files["png"])).astype(int)


def changed(base: Path, folder: Path, change) -> Path:
    """A copy of the base, after `change(pipeline)`."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    change(pipeline)
    pipeline.save_pretrained(folder)
    return folder


def test_pictures_have_size_and_depend_on_seed_id_and_caption(base: Path):
    made = paint(config(base))
    assert [sample.status for sample in made] == ["ok"] * 3
    assert pixels(made[0]).shape == (16, 24, 3)
    assert made[0].meta == SAMPLES[0].meta
    assert paint(config(base))[1].files == made[1].files
    assert paint(config(base), seed=1)[0].columns["seed"] != made[0].columns["seed"]
    assert len({sample.files["png"] for sample in made}) == 3


def test_batch_size_keeps_seeds_and_pixels_within_tolerance(base: Path):
    together = paint(config(base))
    alone = [paint(config(base), [sample])[0] for sample in SAMPLES]
    for a, b in zip(together, alone, strict=True):
        assert a.columns == b.columns
        assert np.abs(pixels(a) - pixels(b)).max() <= 2


def test_equals_the_pipeline_called_by_hand(base: Path):
    (made,) = paint(config(base, negative_prompt="a teapot", scheduler="UniPCMultistepScheduler"), SAMPLES[:1])
    from diffusers import UniPCMultistepScheduler

    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    image = pipeline(
        CAPTIONS[0],
        negative_prompt="a teapot",
        height=16,
        width=24,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(made.columns["seed"]),
    ).images[0]
    assert np.abs(np.asarray(image).astype(int) - pixels(made)).max() <= 1


def test_blank_picture_is_rejected(base: Path, tmp_path: Path):
    def no_colour(pipeline):
        torch.nn.init.zeros_(pipeline.vae.decoder.conv_out.weight)

    made = paint(config(changed(base, tmp_path, no_colour)))
    assert {(sample.status, sample.reason) for sample in made} == {("rejected", "blank")}
    assert made[0].columns["seed"] > 0


def test_nan_picture_is_rejected(base: Path, monkeypatch: pytest.MonkeyPatch):
    decode = AutoencoderKL.decode
    monkeypatch.setattr(
        AutoencoderKL, "decode", lambda *args, **options: tuple(x * float("nan") for x in decode(*args, **options))
    )
    made = paint(config(base))
    assert {sample.reason for sample in made} == {"not_finite"}


def test_picture_flagged_by_the_safety_checker_is_rejected(base: Path, tmp_path: Path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)  # a threshold that any picture passes
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    pipeline.save_pretrained(tmp_path)
    assert {sample.reason for sample in paint(config(tmp_path))} == {"nsfw"}


def test_damaged_and_missing_weights_are_one_line(base: Path, tmp_path: Path):
    folder = changed(base, tmp_path, lambda pipeline: None)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"synthesize\.model: the file '.*unet.*' is damaged") as caught:
        paint(config(folder))
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match=r"synthesize\.model: '.*' cannot be loaded") as caught:
        paint(config(folder))
    assert "\n" not in str(caught.value)


def test_folder_that_is_no_pipeline_and_unknown_scheduler_are_one_line(base: Path, tmp_path: Path):
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"synthesize\.model: .* has no model_index\.json; give the folder of a diff"):
        paint(config(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "NoPipeline"}))
    with pytest.raises(ModelError, match=r"synthesize\.model: .* cannot be loaded"):
        paint(config(tmp_path))
    with pytest.raises(ModelError, match=r"no scheduler 'FooScheduler'; choose one of .*UniPCMultistepScheduler"):
        paint(config(base, scheduler="FooScheduler"))
    with pytest.raises(ModelError, match=r"synthesize\.device: this machine has no device 'cuda:99'"):
        paint(config(base, device="cuda:99"))


def test_speed_is_not_hashed_and_the_model_is_identified(base: Path):
    assert config(base).hashed() == config(base, batch_size=32, device="cuda").hashed()
    assert config(base).hashed() != config(base, steps=3).hashed()
    assert "model" not in config(base).hashed()
    assert list(Synthesize(config(base), 0).models()["model"].as_json()) == ["digest"]


@pytest.mark.parametrize("changes", [{"height": 20}, {"steps": 0}, {"device": "gpu"}, {"dtype": "int8"}, {"stpes": 3}])
def test_bad_config_is_refused(base: Path, changes: dict):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        config(base, **changes)


def test_the_refiner_paints_the_last_steps_and_the_picture_is_resized(tmp_path: Path):
    base, refiner = save_sdxl(tmp_path / "base"), save_refiner(tmp_path / "refiner")
    settings = {"height": 64, "width": 64, "steps": 5, "min_contrast": 0, "refiner": str(refiner)}
    made = paint(config(base, **settings, resize=32, negative_prompt="a teapot"))
    assert [pixels(sample).shape for sample in made] == [(32, 32, 3)] * 3
    again = paint(config(base, **settings, resize=32, negative_prompt="a teapot"), SAMPLES[1:2])
    assert np.abs(pixels(again[0]) - pixels(made[1])).max() <= 2, "no draw hangs on the batch"

    (whole,) = paint(config(base, **settings), SAMPLES[:1])
    first, last = DiffusionPipeline.from_pretrained(base), DiffusionPipeline.from_pretrained(refiner)
    seen = []
    last.unet.register_forward_pre_hook(lambda _, args: seen.append(float(args[1])))
    latents = first(
        CAPTIONS[0],
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=7.5,
        denoising_end=0.8,
        output_type="latent",
        generator=torch.Generator().manual_seed(whole.columns["seed"]),
    ).images
    image = last(CAPTIONS[0], image=latents, num_inference_steps=5, guidance_scale=7.5, denoising_start=0.8).images[0]
    assert np.abs(np.asarray(image).astype(int) - pixels(whole)).max() <= 1
    assert len(seen) == 1 and seen[0] < 200, "one of five steps is the refiner's"
    assert list(Synthesize(config(base, refiner=str(refiner)), 0).models()) == ["model", "refiner"]


def test_a_refiner_that_cannot_take_over_is_one_line(base: Path, tmp_path: Path):
    refiner = save_refiner(tmp_path / "refiner")
    with pytest.raises(ModelError, match=r"synthesize\.model: a StableDiffusionPipeline cannot stop midway"):
        paint(config(base, refiner=str(refiner)))
    with pytest.raises(ModelError, match=r"synthesize\.refiner: '.*' is a StableDiffusionPipeline, which cannot start"):
        paint(config(save_sdxl(tmp_path / "xl"), refiner=str(base)))
    for changes in ({"refiner_from": 0.5}, {"refiner_revision": "main"}, {"resize": 20}):
        with pytest.raises(ValidationError, match=next(iter(changes))):
            config(base, **changes)
