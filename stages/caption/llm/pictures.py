"""Pictures in the messages of chat completions: how they are sent, and what of them the journal stores."""

from __future__ import annotations

import base64
import io
from typing import Any

from bootpig.stages.pictures import decode_png

JPEG_QUALITY = 90


def picture_part(png: bytes) -> dict[str, Any]:
    """A part of a message with a picture, as JPEG. `png`: an RGB picture."""
    buffer = io.BytesIO()
    decode_png(png).convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def without_pictures(request: dict[str, Any]) -> dict[str, Any]:
    """A request without the pictures of its last message, which would fill the journal."""
    *others, message = request["messages"]
    content = [part if "text" in part else {"type": part["type"]} for part in message["content"]]
    return {**request, "messages": [*others, {**message, "content": content}]}
