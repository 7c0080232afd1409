"""Every mode and depth that Pillow writes in every format that keeps it: the same colours come out."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.reader import read_picture

SIDE = 16
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"]
EXACT = ["PNG", "TIFF", "BMP", "TGA", "JPEG2000", "PPM", "QOI", "SGI", "ICO"]
LOSSY = ["JPEG", "WEBP", "AVIF", "GIF", "HEIF", "MPO"]


def colours() -> Image.Image:
    """Slow ramps of red and green, so that lossy formats keep them."""
    ramp = np.tile(np.linspace(20, 235, SIDE).astype(np.uint8), (SIDE, 1))
    return Image.fromarray(np.stack([ramp, ramp.T, np.full_like(ramp, 90)], axis=-1))


def in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(colours(), *profiles, outputMode="LAB")
        assert converted is not None
        return converted
    return colours().convert("P").convert("PA") if mode == "PA" else colours().convert(mode)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def seen(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data, "--ref", "a picture").convert("RGB"))


def written() -> list[tuple[str, str]]:
    """(mode, format) of all that can be written here."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    found = []
    for mode, format in itertools.product(MODES, [*EXACT, *LOSSY]):
        try:
            saved(in_mode(mode), format)
        except (OSError, ValueError, KeyError):  # the format does not know the mode
            continue
        found.append((mode, format))
    return found


def test_every_mode_in_every_format() -> None:
    found = written()
    assert len(found) >= 70
    for mode, format in found:
        data = saved(in_mode(mode), format, **({"quality": 95} if format in LOSSY and format != "GIF" else {}))
        shown = seen(data).astype(int)
        expected = colours() if mode in ("LAB", "YCbCr") else in_mode(mode).convert("RGB")
        allowed = 40 if mode in ("1", "P", "PA") and format in LOSSY else 16 if format in LOSSY or mode == "LAB" else 3
        assert np.abs(shown - np.asarray(expected)).mean() <= allowed, (mode, format)


RAMP = np.tile(np.linspace(0, 65535, SIDE).round().astype(np.uint16), (SIDE, 1))


def twelve_bits() -> bytes:
    """A grey TIFF of 12 bits a pixel, which Pillow reads and does not write."""
    packed = bytearray()
    for low, high in (RAMP >> 4).reshape(-1, 2):
        packed += bytes([low >> 4, (low & 15) << 4 | high >> 8, high & 255])
    values = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    directory = struct.pack("<H", len(values)) + entries + struct.pack("<I", 0)
    return b"II*\x00" + struct.pack("<I", 8 + len(packed)) + bytes(packed) + directory


def white_is_zero() -> bytes:
    """A TIFF whose PhotometricInterpretation, tag 262, is 0."""
    data = bytearray(saved(Image.fromarray(65535 - RAMP), "TIFF"))
    at = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data[at : at + 2] = b"\x00\x00"
    return bytes(data)


DEEP = {
    "16 bits, PNG": lambda: saved(Image.fromarray(RAMP), "PNG"),
    "16 bits, TIFF": lambda: saved(Image.fromarray(RAMP), "TIFF"),
    "16 bits, big-endian TIFF": lambda: saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "16 bits, JPEG 2000": lambda: saved(Image.fromarray(RAMP), "JPEG2000"),
    "16 bits, PGM": lambda: saved(Image.fromarray(RAMP), "PPM"),
    "16 bits, white is zero": white_is_zero,
    "12 bits": twelve_bits,
    "floats, TIFF": lambda: saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "floats, PFM": lambda: saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "PPM"),
}


@pytest.mark.parametrize("kind", list(DEEP))
def test_more_than_8_bits_are_scaled(kind: str) -> None:
    assert np.abs(seen(DEEP[kind]())[..., 0] - RAMP / 257.0).max() <= 1


@pytest.mark.parametrize(
    "levels",
    [
        np.full((8, 8), 200, np.int32),  # black, if it were taken for 16 bits
        np.full((8, 8), -3, np.int32),
        np.full((8, 8), 128.0, np.float32),
        np.full((8, 8), np.inf, np.float32),
    ],
)
def test_a_range_that_is_not_known_is_refused(levels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^--ref: 'a picture' → .*; save it with 8 or 16 bits a channel$"):
        seen(saved(Image.fromarray(levels), "TIFF"))


def test_a_transparent_colour_counts_in_every_mode() -> None:
    half = np.zeros((SIDE, SIDE), np.uint8)
    half[:, SIDE // 2 :] = 255
    images = {
        "L": Image.fromarray(half),
        "1": Image.fromarray(half).convert("1"),
        "I;16": Image.fromarray(half * np.uint16(257)),
    }
    images["RGB"] = images["L"].convert("RGB")
    for mode, image in images.items():
        key: object = (0, 0, 0) if mode == "RGB" else 0
        picture = read_picture(saved(image, "PNG", transparency=key), "--ref")
        assert picture.mode == "RGBA", mode
        assert np.array_equal(np.asarray(picture.getchannel("A")), half), mode


def test_noise_in_an_opaque_alpha_is_no_cut_out() -> None:
    noisy = colours()
    noisy.putalpha(Image.fromarray(np.random.default_rng(0).integers(251, 256, (SIDE, SIDE), np.uint8)))
    assert read_picture(saved(noisy, "PNG"), "--ref").mode == "RGB"


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(turn: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    wide = colours().resize((SIDE * 2, SIDE))
    picture = read_picture(saved(wide, format, exif=exif), "--ref")
    assert picture.size == (wide.size if turn < 5 else wide.size[::-1])
    corner = np.asarray(picture, int)[0, 0, :2]
    red, green = (corner > 128).tolist()  # both grow from the upper left corner of what is stored
    assert (red, green) == {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        turn
    ]


@pytest.mark.parametrize("exif", [b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", b"Exif\x00\x00no TIFF", b"Exif\x00\x00MM"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
def test_broken_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        assert read_picture(saved(colours(), format, exif=exif), "--ref").size == (SIDE, SIDE)


def profile(changes: dict[bytes, bytes]) -> bytes:
    """sRGB's profile with some of its tags replaced by ones of the same length."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12):
        place = int.from_bytes(data[at + 4 : at + 8], "big")
        if new := changes.get(bytes(data[at : at + 4])):
            data[place + 8 : place + 8 + len(new)] = new
    return bytes(data)


def xyz(*values: float) -> bytes:
    return b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in values)


def primaries(red: bytes, green: bytes, blue: bytes) -> dict[bytes, bytes]:
    return {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue}


DISPLAY_P3 = primaries(xyz(0.5151, 0.2412, -0.0011), xyz(0.2920, 0.6922, 0.0419), xyz(0.1571, 0.0666, 0.7841))
ADOBE_RGB = primaries(xyz(0.6097, 0.3111, 0.0195), xyz(0.2053, 0.6257, 0.0609), xyz(0.1492, 0.0632, 0.7446))
KEPT = [("RGB", "JPEG"), *itertools.product(["RGB", "RGBA", "P"], ["PNG", "TIFF", "WEBP"])]


@pytest.mark.parametrize("wide", [DISPLAY_P3, ADOBE_RGB], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize(("mode", "format"), KEPT)
def test_a_wide_gamut_is_converted(wide: dict[bytes, bytes], mode: str, format: str) -> None:
    colour = Image.new("RGB", (SIDE, SIDE), (100, 180, 100)).convert(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    red, green, blue = seen(saved(colour, format, icc_profile=profile(wide), **options))[4, 4].tolist()
    stored = colour.convert("RGB").getpixel((4, 4))
    assert red < stored[0] - 8 and abs(green - stored[1]) < 8 and blue <= stored[2] + 3


def test_srgb_under_any_name_changes_no_pixel_and_a_foreign_profile_does_no_harm() -> None:
    plain = np.asarray(colours())
    renamed = profile({}).replace("sRGB".encode("utf-16-be"), "c2ci".encode("utf-16-be")).replace(b"sRGB", b"c2ci")
    rounded = primaries(xyz(0.4371, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971), xyz(0.1431, 0.0606, 0.7131))
    for icc in (
        profile({}),
        renamed,
        profile(rounded),
        b"no profile at all" * 9,
        profile({b"rTRC": b"\xff" * 12})[:300],
    ):
        assert np.array_equal(seen(saved(colours(), "PNG", icc_profile=icc)), plain)
    grey = colours().convert("L")
    greys = seen(saved(grey, "PNG", icc_profile=profile(DISPLAY_P3)))
    assert np.abs(greys.astype(int) - np.asarray(grey.convert("RGB"))).max() <= 2, "greys of a profile of colours"
    cmyk = saved(colours().convert("CMYK"), "TIFF", icc_profile=profile(DISPLAY_P3))
    assert np.array_equal(seen(cmyk), np.asarray(colours().convert("CMYK").convert("RGB")))


def test_what_comes_out_carries_nothing_on(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where I live"
    source = saved(colours(), "JPEG", exif=exif, icc_profile=profile(DISPLAY_P3), comment="mine", dpi=(300, 300))
    read_picture(source, "--image").save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        assert out.info == {} and len(out.getexif()) == 0
