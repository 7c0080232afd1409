"""What SigLIP and DINO's patches read, compared with the models themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextConfig, ConvNextImageProcessor, ConvNextModel

from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder, SiglipEmbedder
from bootpig.models.pretrained.inspection import judge_problems
from bootpig.models.pretrained.sources import resolve
from tests.models.tiny import SIZE, save_clip, save_siglip, save_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    save_clip(folder / "clip")
    save_vit(folder / "dino")
    save_siglip(folder / "siglip")
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(folder / "cnn")
    ConvNextImageProcessor(size={"shortest_edge": SIZE}).save_pretrained(folder / "cnn")
    return folder


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_siglip_is_the_model_itself_on_lower_case_of_full_length(folder):
    siglip = SiglipEmbedder(folder / "siglip")
    pictures = [noise(0, (40, 64)), noise(1, (64, 32)), noise(2, (32, 32))]
    pixels = siglip.processor(images=pictures, return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = siglip.model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    assert siglip.images(pictures) == pytest.approx(expected, abs=1e-5)
    assert siglip.images(pictures[1:2]) == pytest.approx(expected[1:2], abs=1e-5)
    texts = siglip.texts(["A photo of a Mug", "a photo of a mug", "a mug on the table " * 9])
    ids = siglip.tokenizer(["a photo of a mug"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert ids.shape == (1, 16)
    with torch.inference_mode():
        expected = siglip.model.get_text_features(input_ids=ids).pooler_output.numpy()
    assert texts[:2] == pytest.approx(np.repeat(expected, 2, axis=0), abs=1e-5)


def test_a_long_caption_keeps_its_end_token(folder):
    clip = ClipEmbedder(folder / "clip")
    tokens = clip.tokenizer("mug " * 40, truncation=True, max_length=16).input_ids
    assert tokens[-1] == clip.tokenizer.eos_token_id and len(tokens) == 16
    assert clip.texts(["mug " * 40]) == pytest.approx(clip.texts(["mug " * 14]), abs=1e-5)


def test_pictures_are_embedded_alike_alone_and_in_a_batch(folder):
    pictures = [noise(seed, (30 + 7 * seed, 64)) for seed in range(5)]
    for embedder in (ClipEmbedder(folder / "clip"), DinoEmbedder(folder / "dino"), SiglipEmbedder(folder / "siglip")):
        together = embedder.images(pictures)
        for place, picture in enumerate(pictures):
            assert together[place] == pytest.approx(embedder.images([picture])[0], abs=1e-5)


def test_parts_are_the_patches_that_the_mask_covers(folder):
    dino = DinoEmbedder(folder / "dino")
    picture = noise(0, (64, 64))
    with torch.inference_mode():
        pixels = dino.processor(images=[picture], return_tensors="pt").pixel_values
        tokens = dino.model(pixel_values=pixels).last_hidden_state[0].numpy()
    patches = tokens[1:].reshape(4, 4, -1)
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    dot = np.zeros((64, 64), bool)
    dot[36:39, 52:55] = True
    found = dino.parts([picture, picture, picture], [left, dot, np.ones((64, 64), bool)])
    assert found[0] == pytest.approx(patches[:, :2].reshape(8, -1), abs=1e-5)
    assert found[1] == pytest.approx(patches[2, 3][None], abs=1e-5), "a subject smaller than a patch"
    assert found[2] == pytest.approx(tokens[1:], abs=1e-5)


def test_preprocessing_is_that_of_the_folder(folder, tmp_path):
    """DINO's own code resizes the shorter side and crops; its folder on the hub squeezes to a square."""
    own = Path(shutil.copytree(folder / "dino", tmp_path / "dino"))
    crop = {"height": SIZE, "width": SIZE}
    settings = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": crop}
    (own / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": True, "resample": 3}))
    assert judge_problems(resolve("evaluate.dino", str(own)), "patches") == []
    squeezing, cropping = DinoEmbedder(folder / "dino"), DinoEmbedder(own)
    wide = noise(0, (120, 36))
    assert cropping.images([wide]) == pytest.approx(cropping.images([wide.crop((42, 0, 78, 36))]), abs=1e-5)
    assert np.abs(squeezing.images([wide]) - squeezing.images([wide.crop((42, 0, 78, 36))])).max() > 1e-2
    middle = np.zeros((36, 120), bool)
    middle[:, 42:78] = True
    assert len(cropping.parts([wide], [middle])[0]) == 16, "the mask is cropped as the picture is"
    assert len(squeezing.parts([wide], [middle])[0]) < 16


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        ("siglip", "clip", "is a SiglipModel; a complete CLIPModel is needed"),
        ("clip", "siglip", "is a CLIPModel; a complete SiglipModel or Siglip2Model is needed"),
        (
            "cnn",
            "patches",
            "is a ConvNextModel; a complete ViT with a class token and a feature for each patch is needed",
        ),
        ("cnn", "dino", "is a ConvNextModel; a complete ViT with a class token is needed"),
        ("clip", "patches", "is a CLIPModel"),
    ],
)
def test_another_kind_of_model_is_one_line(folder, model, kind, says):
    (line,) = judge_problems(resolve("evaluate.x", str(folder / model)), kind)
    assert line.startswith("evaluate.x: ") and says in line and "\n" not in line


@pytest.mark.parametrize(("model", "kind"), [("siglip", "siglip"), ("dino", "patches"), ("clip", "clip")])
def test_the_right_kind_has_no_problems(folder, model, kind):
    assert judge_problems(resolve("evaluate.x", str(folder / model)), kind) == []
