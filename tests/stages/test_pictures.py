"""Pictures to bytes and back: equal pixels, equal bytes, whoever decodes them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.pictures import decode_cut_out, decode_png, decode_pngs, encode_mask, encode_png


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 64])
def test_many_are_decoded_in_order(count: int) -> None:
    pixels = [noise(seed, 8 + seed % 5) for seed in range(count)]
    decoded = decode_pngs([encode_png(Image.fromarray(one)) for one in pixels])
    assert len(decoded) == count
    assert all(np.array_equal(np.asarray(made), one) for made, one in zip(decoded, pixels, strict=True))


def test_a_damaged_one_is_an_error() -> None:
    whole = encode_png(Image.fromarray(noise(0)))
    for broken in (whole[: len(whole) // 2], b"", b"GIF89a" + whole):
        with pytest.raises(OSError, match=r"truncated|cannot identify"):
            decode_pngs([whole, broken, whole])


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_a_mask_is_the_alpha_of_the_cut_out(width: int) -> None:
    mask = noise(1, 9)[:, :, 0].repeat(8, axis=1)[:, :width] > 127
    picture = Image.fromarray(noise(2, 64)).crop((0, 0, width, 9))
    assert decode_png(encode_mask(mask)).mode == "1"
    cut_out = np.asarray(decode_cut_out({"png": encode_png(picture), "mask.png": encode_mask(mask)}))
    assert np.array_equal(cut_out[:, :, 3], mask * np.uint8(255))
    assert np.array_equal(cut_out[:, :, :3], np.asarray(picture))
