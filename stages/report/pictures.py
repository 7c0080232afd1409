"""Finds pictures in shards and puts them into a page as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageOps

from bootpig.storage.errors import StoreError
from bootpig.storage.shards import read_shard

THUMBNAIL = 192
"""Longer side of an inlined picture, in pixels, at most."""

Payload = Callable[[str, int], bytes | Path]
"""`payload(stage, unit)`: the shard of a complete unit, as bytes or as a local file."""

UNREADABLE = (StoreError, OSError, ValueError, KeyError)
"""Raised by a damaged or missing file. The report leaves it out; the run's own checks name it."""


def data_uri(picture: bytes | Image.Image) -> str:
    """A picture of at most `THUMBNAIL` pixels per side as a data URI: PNG if it is that small already, else JPEG.

    Raises:
        OSError: the bytes are no picture.
    """
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    image = image.convert("RGB")
    small = max(image.size) <= THUMBNAIL
    if not small:
        image = ImageOps.contain(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, *(("PNG",) if small else ("JPEG",)), **({"optimize": True} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def find_samples(shard: bytes | Path, keys: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """The samples `keys` of a shard. Reads no further than the last of them."""
    wanted, found = set(keys), {}
    for key, members in read_shard(shard):
        if key in wanted:
            found[key] = members
            if len(found) == len(wanted):
                break
    return found
