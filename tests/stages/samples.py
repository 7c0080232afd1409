"""Samples of the toy world as input for each map stage."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bootpig.models.toy.world import SIZE, Scene, render_scene
from bootpig.stages.engine.contract import Sample
from bootpig.stages.pictures import encode_mask, encode_png


def captioned(caption: str = "A photo of a mug, on the left on a sandy beach", id: str = "0" * 16) -> Sample:
    """The output of caption."""
    return Sample(id, 0, {"caption": caption, "object": caption.split(" a ", 1)[1].split(",")[0]})


def painted(scene: Scene, id: str = "0" * 16) -> Sample:
    """The output of synthesize for `scene`."""
    meta = {"caption": scene.caption, "object": scene.kind}
    return Sample(id, 0, meta, {"png": encode_png(Image.fromarray(scene.image))})


def cut_out(scene: Scene, id: str = "0" * 16) -> Sample:
    """The output of segment for `scene`, with the true mask."""
    meta = {"caption": scene.caption, "object": scene.kind}
    return Sample(id, 0, meta, cut_out_files(rgba(scene)))


def cut_out_files(picture: Image.Image) -> dict[str, bytes]:
    """An RGBA picture as the two files that segment writes."""
    mask = np.asarray(picture.getchannel("A")) > 0
    return {"png": encode_png(picture.convert("RGB")), "mask.json": encode_mask(mask)}


def rgba(scene: Scene) -> Image.Image:
    return Image.fromarray(np.dstack([scene.image, scene.mask.astype(np.uint8) * 255]))


def scenes(count: int) -> list[Scene]:
    return [render_scene(f"stage-tests/{i}", "held_out") for i in range(count)]


def noise(id: str = "0" * 16, phrase: str = "mug") -> Sample:
    """A picture with nothing in it, by name of `phrase`."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    return Sample(
        id,
        0,
        {"caption": f"A photo of a {phrase}, here", "object": phrase},
        {"png": encode_png(Image.fromarray(pixels))},
    )
