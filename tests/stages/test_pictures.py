"""Encoding and decoding pictures and masks: equal pixels give equal bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.utils import amg

from bootpig.stages.pictures import decode_cut_out, decode_mask, decode_pngs, encode_mask, encode_png


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 64])
def test_many_are_decoded_in_order(count: int) -> None:
    pixels = [noise(seed, 8 + seed % 5) for seed in range(count)]
    decoded = decode_pngs([encode_png(Image.fromarray(one)) for one in pixels])
    assert len(decoded) == count
    assert all(np.array_equal(np.asarray(made), one) for made, one in zip(decoded, pixels, strict=True))


def test_whatever_its_mode_a_picture_comes_as_rgb() -> None:
    rgb = Image.fromarray(noise(0))
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        (picture,) = decode_pngs([encode_png(rgb.convert(mode))])
        assert np.array_equal(np.asarray(picture), np.asarray(rgb.convert(mode).convert("RGB")))


def test_a_damaged_one_is_an_error() -> None:
    whole = encode_png(Image.fromarray(noise(0)))
    for broken in (whole[: len(whole) // 2], b"", b"GIF89a" + whole):
        with pytest.raises(OSError, match=r"truncated|cannot identify"):
            decode_pngs([whole, broken, whole])


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_a_mask_is_the_alpha_of_the_cut_out(width: int) -> None:
    mask = noise(1, 9)[:, :, 0].repeat(8, axis=1)[:, :width] > 127
    picture = Image.fromarray(noise(2, 64)).crop((0, 0, width, 9))
    cut_out = np.asarray(decode_cut_out({"png": encode_png(picture), "mask.json": encode_mask(mask)}))
    assert np.array_equal(cut_out[:, :, 3], mask * np.uint8(255))
    assert np.array_equal(cut_out[:, :, :3], np.asarray(picture))


def masks() -> list[np.ndarray]:
    sparse = noise(3)[:, :, 0] > 250
    return [sparse, ~sparse, sparse[:, :5], sparse[:1], np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(1) > 0]


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape} {mask.sum()}")
def test_a_mask_is_what_the_tools_of_segment_anything_read_and_write(mask: np.ndarray) -> None:
    data = encode_mask(mask)
    assert json.loads(data) == amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    assert np.array_equal(amg.rle_to_mask(json.loads(data)), mask)
    assert np.array_equal(decode_mask(data, *mask.shape), mask)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"counts": [11, 1], "size": [4, 3]}',  # of another size
        '{"counts": [11], "size": [3, 4]}',
        '{"counts": [12, 1], "size": [3, 4]}',
        '{"counts": [7, -1, 6], "size": [3, 4]}',
        '{"counts": [9223372036854775807, 9223372036854775807, 14], "size": [3, 4]}',  # 12 in 64 bits
        '{"counts": [99999999999999999999], "size": [3, 4]}',
        '{"counts": [[12]], "size": [3, 4]}',
        '{"counts": [NaN, 12], "size": [3, 4]}',
        '{"counts": "<1", "size": [3, 4]}',
        '{"counts": null, "size": [3, 4]}',
        '{"size": [3, 4]}',
    ],
)
def test_no_mask_of_the_pictures_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^mask: .* 4x3 pixels$"):
        decode_mask(text.encode(), 3, 4)
