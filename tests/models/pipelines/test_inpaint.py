"""Inpainting keeps what the mask leaves, and paints the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from PIL import Image

from bootpig.models.pipelines.known_region import InpaintOutput
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from tests.models.networks import sd_pipeline, train_a_little


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> BootPIGInpaintPipeline:
    text_to_image = sd_pipeline(tmp_path_factory.mktemp("pipeline"))
    train_a_little(text_to_image)
    inpaint = BootPIGInpaintPipeline.from_pipe(text_to_image)
    assert inpaint.reference_unet is text_to_image.reference_unet
    inpaint.set_progress_bar_config(disable=True)
    return inpaint


def scene(size: tuple[int, int] = (64, 64)) -> Image.Image:
    blocks = np.random.default_rng(4).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(blocks)


def mask(size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (16, 16, 40, 48)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def paint(pipeline: BootPIGInpaintPipeline, **kwargs: Any) -> InpaintOutput:
    arguments: dict[str, Any] = {
        "prompt": "a photo of a mug",
        "reference_images": Image.new("RGB", (64, 64), "red"),
        "image": scene(),
        "mask_image": mask(),
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(0),
        **kwargs,
    }
    return pipeline(**arguments)


def test_outside_the_mask_every_pixel_stays(pipeline: BootPIGInpaintPipeline) -> None:
    output = paint(pipeline, num_images_per_prompt=2)
    white = np.asarray(mask()) == 255
    for image in output.images:
        before, after = np.asarray(scene()), np.asarray(image)
        assert np.array_equal(before[~white], after[~white])
        assert not np.array_equal(before[white], after[white])
    assert not np.array_equal(*map(np.asarray, output.images))
    assert len(output.known_psnr_db) == 2
    assert all(0 < psnr < 60 for psnr in output.known_psnr_db)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("kind", [DDIMScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_known_latents_end_clean(pipeline: BootPIGInpaintPipeline, kind: type[Any], strength: float) -> None:
    own = pipeline.scheduler
    pipeline.scheduler = kind.from_config(own.config, **({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    steps = []
    try:
        latents = paint(
            pipeline,
            output_type="latent",
            strength=strength,
            num_inference_steps=4,
            callback_on_step_end=lambda _, step, t, tensors: steps.append(step) or {},
        ).images
    finally:
        pipeline.scheduler = own
    pixels = torch.from_numpy(np.asarray(scene()).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        known = pipeline._encode_pixels(pixels)
    white = np.asarray(mask())[4::8, 4::8] == 255
    torch.testing.assert_close(latents[0][:, ~white], known[0][:, ~white], atol=1e-5, rtol=0)
    assert torch.isfinite(latents).all()
    assert not torch.allclose(latents[0][:, white], known[0][:, white], atol=0.1)
    if kind is not PNDMScheduler:  # whose warm-up adds steps of its own
        assert len(steps) == 4 * strength


def test_each_step_holds_the_picture_at_the_next_noise_level(pipeline: BootPIGInpaintPipeline) -> None:
    seen: list[torch.Tensor] = []
    paint(
        pipeline,
        output_type="latent",
        callback_on_step_end=lambda _, step, t, tensors: seen.append(tensors["latents"]) or {},
    )
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(0))
    known = seen[-1]
    black = np.asarray(mask())[4::8, 4::8] == 0
    for step, t in enumerate(pipeline.scheduler.timesteps[1:]):
        alpha = pipeline.scheduler.alphas_cumprod[t]
        expected = alpha.sqrt() * known + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(seen[step][0][:, black], expected[0][:, black])


def test_other_sizes_and_crops(pipeline: BootPIGInpaintPipeline) -> None:
    size, box = (150, 100), (100, 20, 130, 60)
    output = paint(pipeline, image=scene(size), mask_image=mask(size, box), padding_mask_crop=8)
    white = np.asarray(mask(size, box)) == 255
    assert output.images[0].size == size
    assert np.array_equal(np.asarray(scene(size))[~white], np.asarray(output.images[0])[~white])
    whole = paint(pipeline, image=scene(size), mask_image=mask(size, box))
    assert whole.images[0].size == size
    assert not np.array_equal(np.asarray(whole.images[0]), np.asarray(output.images[0]))


def test_output_types(pipeline: BootPIGInpaintPipeline) -> None:
    arrays = paint(pipeline, output_type="np").images
    assert arrays.shape == (1, 64, 64, 3)
    assert arrays.min() >= 0
    assert arrays.max() <= 1
    assert paint(pipeline, output_type="pt").images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image": None}, "image: give a PIL image"),
        ({"mask_image": None}, "mask_image: give a PIL image"),
        ({"mask_image": mask((32, 32), (0, 0, 8, 8))}, "mask_image: .* for an image of"),
        ({"mask_image": Image.new("L", (64, 64))}, "black everywhere"),
        ({"strength": 0.0}, "strength: 0.0"),
        ({"image": [scene(), scene()]}, "image: 2 for 1"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_bad_input_is_one_clear_error(pipeline: BootPIGInpaintPipeline, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paint(pipeline, **kwargs)
