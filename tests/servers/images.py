"""The images API of the endpoint in `llm`: pictures that follow from prompt, seed and size, and faults in them.

Faults: `jpeg`, `sixteen_bit`, `one_pixel`, `double` (twice the size), `wide`, `blank`, `clear` (transparent),
`cut_off`, `broken_base64`, `null`, `no_data`, `moderation` (a 400), `filtered` (in the entry), `url`, `foreign`,
`data_url`; of a picture's own address: `file_503`, `file_404`, `file_redirect`, `file_html`.
"""

from __future__ import annotations

import base64
import io
import random
from typing import Any

import numpy as np
from PIL import Image
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

MODELS = ["canvas-1"]

DRAWN: dict[str, bytes] = {}
"""Pictures that have an address of their own."""


def answer(body: dict[str, Any], kind: str, rng: random.Random) -> Response:
    """The response to a request for one picture."""
    assert body["n"] == 1 and body.get("response_format", "b64_json") == "b64_json"
    if kind == "moderation":
        blocked = {"message": "Your request was rejected\nby the safety system", "code": "moderation_blocked"}
        return JSONResponse({"error": {**blocked, "type": "image_generation_user_error", "param": None}}, 400)
    if kind == "no_data":
        return JSONResponse({"created": 0, "data": []})
    width, height = map(int, body["size"].split("x"))
    data = encoded(draw(width, height, kind, rng), kind)
    text = base64.b64encode(data).decode()
    entry: dict[str, Any] = {"b64_json": text}
    if kind == "broken_base64":
        entry = {"b64_json": "!" + text[1:]}
    elif kind == "null":
        entry = {"b64_json": None}
    elif kind == "filtered":
        entry = {"b64_json": None, "finish_reason": "CONTENT_FILTER"}
    elif kind == "data_url":
        entry = {"url": f"data:image/png;base64,{text}"}
    elif kind == "foreign":
        entry = {"url": "http://169.254.169.254/latest/meta-data"}
    elif kind == "url":
        name = f"{rng.getrandbits(64):016x}.png"
        DRAWN[name] = data
        entry = {"url": f"/v1/pictures/{name}"}
    return JSONResponse({"created": 0, "data": [entry]})


def file(name: str, fault: dict[str, Any]) -> Response:
    """The response at a picture's own address."""
    kind = fault["kind"]
    if kind == "file_redirect":
        return RedirectResponse("http://169.254.169.254/latest/meta-data")
    if kind == "file_html":
        return HTMLResponse("<html>sign in</html>")
    if kind:
        return Response(status_code=int(kind.removeprefix("file_")))
    return Response(DRAWN[name], media_type="image/png")


def draw(width: int, height: int, kind: str, rng: random.Random) -> Image.Image:
    """Coloured blocks."""
    if kind == "blank":
        return Image.new("RGB", (width, height), (200, 30, 90))
    if kind == "one_pixel":
        width = height = 1
    scale = 2 if kind == "double" else 1
    width = width * 2 if kind == "wide" else width
    blocks = np.frombuffer(rng.randbytes(4 * 4 * 3), np.uint8).reshape(4, 4, 3)
    picture = Image.fromarray(blocks).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    if kind == "clear":
        picture.putalpha(0)
    return picture


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "jpeg":
        picture.save(buffer, "JPEG")
    elif kind == "sixteen_bit":
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(buffer, "PNG")
    else:
        picture.save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if kind == "cut_off" else data
