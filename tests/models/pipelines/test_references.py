"""References: from what a user gives to what the VAE sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig.models.pipelines.references import SUBJECT_FRACTION, PreparedReferences, pixel_values, prepare_picture

SIZE = 64


def cut_out(size: tuple[int, int] = (90, 70), box: tuple[int, int, int, int] = (50, 10, 80, 25)) -> Image.Image:
    """A red subject anywhere in a transparent picture, whose hidden pixels are black."""
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), box)
    return picture


def red_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    pixels = np.asarray(picture).astype(int)
    return Image.fromarray(pixels[..., 0] - pixels[..., 1] > 128).getbbox()


@pytest.mark.parametrize("box", [(50, 10, 80, 25), (0, 0, 15, 30), (10, 10, 50, 50)])
def test_a_cut_out_subject_stands_on_white_in_the_middle(box: tuple[int, int, int, int]) -> None:
    prepared = prepare_picture(cut_out(box=box), SIZE)
    assert prepared.mode == "RGB" and prepared.size == (SIZE, SIZE)
    found = red_box(prepared)
    assert found is not None
    assert max(found[2] - found[0], found[3] - found[1]) == SIZE * SUBJECT_FRACTION
    assert abs((found[0] + found[2]) - SIZE) <= 1 and abs((found[1] + found[3]) - SIZE) <= 1
    shape = (box[2] - box[0]) / (box[3] - box[1])
    assert (found[2] - found[0]) / (found[3] - found[1]) == pytest.approx(shape, rel=0.1)
    assert (np.asarray(prepared)[[0, -1]] == 255).all() and (np.asarray(prepared)[:, [0, -1]] == 255).all()


def test_where_the_subject_stood_does_not_matter() -> None:
    one, other = cut_out(box=(50, 10, 80, 25)), cut_out((200, 200), (120, 150, 150, 165))
    assert prepare_picture(one, SIZE).tobytes() == prepare_picture(other, SIZE).tobytes()


def test_an_opaque_picture_is_padded_to_a_square() -> None:
    prepared = np.asarray(prepare_picture(Image.new("RGB", (200, 100), "red"), SIZE))
    assert prepared.shape == (SIZE, SIZE, 3)
    assert (prepared[16:48] == (255, 0, 0)).all()
    assert (prepared[:16] == 255).all() and (prepared[48:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_kind_of_array_is_the_same_picture(mode: str) -> None:
    picture = cut_out().convert(mode)
    array = np.asarray(picture)
    kinds = [array, (array / 255).astype(np.float32), torch.from_numpy(array / 255).permute(2, 0, 1)]
    expected = prepare_picture(picture, SIZE).tobytes()
    assert [prepare_picture(kind, SIZE).tobytes() == expected for kind in kinds] == [True] * 3


def test_pixel_values_are_the_vaes() -> None:
    values = pixel_values([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")])
    assert values.shape == (2, 3, 8, 8) and values.dtype == torch.float32
    assert (values[0] == 1).all() and (values[1] == -1).all()


def test_latents_in_place_of_pictures() -> None:
    parts = [torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(count)) for count in (2, 1)]
    prepared = PreparedReferences.from_latents(parts)
    assert prepared.prompts == ((0, 1), (2,)) and len(set(prepared.keys)) == 3
    assert prepared.for_prompts(2) == prepared.prompts
    with pytest.raises(ValueError, match="prepared for 2 prompts, but there are 3"):
        prepared.for_prompts(3)
    assert PreparedReferences.from_latents(parts[:1]).for_prompts(3) == ((0, 1),) * 3
