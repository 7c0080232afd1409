"""Latents and embeddings equal those of diffusers' own pipeline, in one safetensors member per sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load

from bootpig.models.pretrained.source import ModelError
from bootpig.stages.encode import Encode, EncodeConfig
from bootpig.stages.engine.contract import InputError, Sample
from bootpig.stages.pictures import decode_png, encode_png
from tests.models.families import save_sdxl
from tests.models.networks import WIDTH
from tests.stages.train.training_data import save_base

REFERENCES = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def sample(number: int, side: int = 16) -> Sample:
    rng = np.random.default_rng(number)
    names = ["target.png", *(f"reference{k}.png" for k in range(REFERENCES))]
    files = {name: encode_png(Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8))) for name in names}
    caption = f"A photo of a mug, on table {number}"
    return Sample(f"{number:016d}", 0, {"caption": caption, "object": "mug"}, files)


def encode(model: Path, samples: list[Sample], **changes) -> list[Sample]:
    stage = Encode(EncodeConfig(model=str(model), device="cpu", **changes), seed=0)
    stage.setup()
    made = stage.process(samples)
    stage.teardown()
    return made


def pixel_values(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(decode_png(data))).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def test_tensors_equal_the_pipelines_own(base: Path):
    samples = [sample(0), sample(1)]
    made = [load(result.files["safetensors"]) for result in encode(base, samples)]
    pipeline = DiffusionPipeline.from_pretrained(base)
    for given, tensors in zip(samples, made, strict=True):
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
            "target": ((4, 8, 8), torch.float16),
            "references": ((REFERENCES, 4, 8, 8), torch.float16),
            "prompt_embeds": ((16, 32), torch.float16),
        }, "the reference's text is the caption, so it is stored once"
        for name, stored in (("target", tensors["target"]), ("reference2", tensors["references"][2])):
            posterior = pipeline.vae.encode(pixel_values(given.files[f"{name}.png"])).latent_dist
            expected = posterior.mode()[0] * pipeline.vae.config.scaling_factor
            torch.testing.assert_close(stored.float(), expected, atol=2e-3, rtol=2e-3)
        expected = pipeline.encode_prompt(given.meta["caption"], torch.device("cpu"), 1, False)[0][0]
        torch.testing.assert_close(tensors["prompt_embeds"].float(), expected, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_reference_caption_object_stops_at_the_first_comma(base: Path):
    tensors = load(encode(base, [sample(0)], reference_caption="object")[0].files["safetensors"])
    pipeline = DiffusionPipeline.from_pretrained(base)
    expected = pipeline.encode_prompt("A photo of a mug", torch.device("cpu"), 1, False)[0][0]
    torch.testing.assert_close(tensors["reference_prompt_embeds"].float(), expected, atol=2e-3, rtol=2e-3)
    assert not torch.equal(tensors["prompt_embeds"], tensors["reference_prompt_embeds"])


def test_sdxl_keeps_pooled_embeds(tmp_path: Path):
    made = encode(save_sdxl(tmp_path / "base"), [sample(0)], reference_caption="object")
    tensors = load(made[0].files["safetensors"])
    assert tensors["prompt_embeds"].shape == tensors["reference_prompt_embeds"].shape == (40, WIDTH + WIDTH // 2)
    assert tensors["pooled_prompt_embeds"].shape == tensors["pooled_reference_prompt_embeds"].shape == (WIDTH,)


def test_bytes_repeat_and_batches_agree(base: Path):
    samples = [sample(0), sample(1)]
    together = encode(base, samples)
    assert [r.files for r in encode(base, samples)] == [r.files for r in together]
    alone = load(encode(base, samples[1:])[0].files["safetensors"])
    for name, tensor in load(together[1].files["safetensors"]).items():
        torch.testing.assert_close(tensor, alone[name], atol=2e-3, rtol=2e-3)


def test_what_does_not_fit_float16_is_rejected(base: Path, tmp_path: Path):
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.vae.register_to_config(scaling_factor=1e9)
    pipeline.save_pretrained(tmp_path)
    (made,) = encode(tmp_path, [sample(0)])
    assert (made.status, made.reason) == ("rejected", "not_finite")


def test_pictures_that_do_not_divide_are_bad_input(base: Path):
    with pytest.raises(
        InputError, match=r"encode: 15x15 pictures are not divisible by 2.*set augment\.size.*multiples of 2"
    ):
        encode(base, [sample(0, side=15)])


def test_targets_keep_their_size_beside_square_references(base: Path):
    rng = np.random.default_rng(0)
    sides = {"target.png": (12, 20), "reference0.png": (16, 16), "reference1.png": (16, 16)}
    files = {
        name: encode_png(Image.fromarray(rng.integers(0, 255, (*side, 3), np.uint8))) for name, side in sides.items()
    }
    meta = {"caption": "A photo of a mug, here", "object": "mug", "size": [12, 20]}
    (made,) = encode(base, [Sample("0" * 16, 0, meta, files)])
    tensors = load(made.files["safetensors"])
    assert (tensors["target"].shape, tensors["references"].shape) == ((4, 6, 10), (2, 4, 8, 8))
    assert made.columns == {"height": 12, "width": 20}
    assert encode(base, [sample(0)])[0].columns == {}, "where all pictures have one size, rows are as before"


def test_model_without_vae_is_one_line(base: Path, tmp_path: Path):
    (tmp_path / "model_index.json").write_text((base / "model_index.json").read_text())
    with pytest.raises(ModelError, match=r"encode\.model: '.*' cannot be loaded") as caught:
        encode(tmp_path, [sample(0)])
    assert "\n" not in str(caught.value)


def test_hashed_fields():
    config = EncodeConfig(model="x")
    assert config.hashed() == {"reference_caption": "caption", "dtype": "float32"}
