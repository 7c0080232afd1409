"""The embedders with tiny random models of the real classes, saved and loaded from disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from tests.models.tiny import save_clip, save_vit

SIZE = 32


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (48, 48), (64, 64), (32, 32), (64, 64)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


def test_clip_images_equal_the_models_own_forward(clip_folder, images):
    embedder = ClipEmbedder(str(clip_folder), batch_size=2)
    embeddings = embedder.images(images)
    assert embeddings.shape == (5, 16)
    assert embeddings.dtype == np.float32
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=images[0], return_tensors="pt").pixel_values
    tokens = embedder.tokenizer(["a mug"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(_unit(embeddings[0]), output.image_embeds[0])
    torch.testing.assert_close(_unit(embedder.texts(["a mug"])[0]), output.text_embeds[0])


def test_the_batch_size_changes_nothing(clip_folder, vit_folder, images):
    texts = ["a mug", "a teapot on a table", "mug", "table", "a a a a"]
    for size in (1, 3):
        clip = ClipEmbedder(str(clip_folder), batch_size=size)
        whole = ClipEmbedder(str(clip_folder), batch_size=5)
        np.testing.assert_allclose(clip.images(images), whole.images(images), atol=1e-5)
        np.testing.assert_allclose(clip.texts(texts), whole.texts(texts), atol=1e-5)
        dino = DinoEmbedder(str(vit_folder), batch_size=size).images(images)
        np.testing.assert_allclose(dino, DinoEmbedder(str(vit_folder), batch_size=5).images(images), atol=1e-5)


def test_a_caption_too_long_is_cut(clip_folder):
    embeddings = ClipEmbedder(str(clip_folder)).texts(["mug " * 100, "a mug"])
    assert np.isfinite(embeddings).all()
    assert not np.allclose(embeddings[0], embeddings[1])


def test_dino_is_the_class_token_of_vit(vit_folder, images):
    embeddings = DinoEmbedder(str(vit_folder)).images(images[:1])
    model = ViTModel.from_pretrained(vit_folder, dtype=torch.float32).eval()
    pixels = ViTImageProcessor.from_pretrained(vit_folder)(images=images[0], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[0, 0]
    torch.testing.assert_close(torch.from_numpy(embeddings[0]), expected)


def test_dinov2_loads_as_well(tmp_path, images):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8)
    Dinov2Model(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    assert DinoEmbedder(str(tmp_path)).images(images).shape == (5, 16)


def test_float16_weights_are_read_into_float32(tmp_path, images):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIZE
    )
    ViTModel(config).half().save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert DinoEmbedder(str(tmp_path)).images(images).dtype == np.float32


def test_grey_and_transparent_pictures_are_taken(vit_folder, images):
    embedder = DinoEmbedder(str(vit_folder))
    grey, clear = images[0].convert("L"), images[0].convert("RGBA")
    np.testing.assert_allclose(embedder.images([clear]), embedder.images([images[0]]), atol=1e-6)
    assert embedder.images([grey]).shape == (1, 16)


def test_the_wrong_kind_of_model_is_named(clip_folder, vit_folder):
    with pytest.raises(ValueError, match="CLIPModel is needed"):
        ClipEmbedder(str(vit_folder))
    with pytest.raises(ValueError, match="class token"):
        DinoEmbedder(str(clip_folder))


def test_tiny_clip_is_a_real_clip(clip_folder):
    assert CLIPConfig.from_pretrained(clip_folder).projection_dim == 16


def _unit(row):
    tensor = torch.from_numpy(row)
    return tensor / tensor.norm()
