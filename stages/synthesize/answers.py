"""Reads the answers of an images endpoint. They are untrusted: whatever is wrong with one becomes a code."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bootpig.stages.caption.llm.answers import SHOWN, WITHHELD
from bootpig.stages.caption.llm.faults import REFUSED
from bootpig.stages.picture_files.reader import PictureError, on_white, read_picture
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json

FAULTS = {
    REFUSED: "the endpoint rejects the request for this caption (400 or 422), but has answered others",
    "empty": "the endpoint's answer contains no picture",
    "unreadable": "the endpoint's answer contains something that is not a picture, or a damaged one",
}
"""Code → meaning. Such a picture is requested again, in a later round or run."""

REJECTIONS = {
    "content_filter": "the endpoint's content filter blocked the picture",
    "wrong_size": "the endpoint's picture has other proportions, or fewer pixels than the stored picture needs",
}
"""Code → meaning. Another request would end the same way."""

FILTERS = WITHHELD | {
    "contentfilter",
    "content_policy_violation",
    "moderation_blocked",
    "responsibleaipolicyviolation",
    "responsible_ai_policy_violation",
    "safety_violation",
    "nsfw",
}
"""Lower-case codes of an endpoint that refused to draw a picture."""

SAME_SHAPE = 0.02
"""Width by height may differ by this fraction from what was asked for: endpoints round to their own multiples."""


@dataclass(frozen=True)
class Answer:
    """The first picture of an answer: its bytes as base64, where it can be fetched, or why there is none."""

    base64: str = ""
    url: str = ""
    is_kept: bool = False
    """Whether the journal has the bytes in a file of their own."""
    code: str = ""
    message: str = ""


def is_answer(body: str) -> bool:
    """Whether the body of a response is an images response, or the refusal to draw a picture."""
    try:
        data = parse_json(body)
    except ValueError:
        return False
    return refusal(data) is not None or _entries(data) is not None


def refusal(data: Any) -> str | None:
    """The endpoint's message if a response says that its content filter refused, else None."""
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict):
        return None
    inner = error.get("innererror") or error.get("inner_error")
    codes = [fields.get(name) for fields in (error, inner) if isinstance(fields, dict) for name in ("code", "type")]
    if not any(str(code).casefold() in FILTERS for code in codes):
        return None
    return one_line(str(error.get("message") or ""), SHOWN)


def read_images(body: str) -> Answer:
    """Find the first picture of an images response."""
    try:
        data = parse_json(body)
    except ValueError:
        return Answer(code="unreadable", message="the answer is not JSON")
    if (said := refusal(data)) is not None:
        return Answer(code="content_filter", message=said)
    entries = _entries(data)
    if not entries:
        return Answer(code="empty", message="the answer contains no picture")
    entry = entries[0] if isinstance(entries[0], dict) else {}
    if str(entry.get("finish_reason")).casefold() in FILTERS:
        return Answer(code="content_filter", message=one_line(str(entry["finish_reason"]), SHOWN))
    encoded, url = entry.get("b64_json"), entry.get("url")
    if isinstance(encoded, dict):
        return Answer(is_kept=True)
    if isinstance(encoded, str) and encoded:
        return Answer(base64=encoded)
    if isinstance(url, str) and url.startswith("data:"):
        return Answer(base64=url)
    if isinstance(url, str) and url:
        return Answer(url=url)
    return Answer(code="empty", message="the answer has neither b64_json nor url")


def decoded(text: str) -> bytes | None:
    """The bytes of base64, which may have a `data:` prefix, line breaks or no padding. None if it is damaged."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def open_picture(
    data: bytes, name: str, asked: tuple[int, int], stored: tuple[int, int]
) -> tuple[Image.Image | None, str, str]:
    """Read a picture of any format and resize it to the size that is stored.

    Args:
        data: the picture file.
        name: its name, for messages.
        asked: the (height, width) that was asked for.
        stored: the (height, width) of the result, with the same proportions.

    Returns:
        (picture, code, message): an RGB picture, or the code and the message why it cannot be used.
    """
    try:
        picture = on_white(read_picture(data, "synthesize.openai", name))
    except PictureError as error:
        return None, "unreadable", str(error)
    width, height = picture.size
    is_other = abs(width * asked[0] / (height * asked[1]) - 1) > SAME_SHAPE
    if is_other or width < stored[1] or height < stored[0]:
        return None, "wrong_size", f"{width}x{height} pixels; asked for {asked[1]}x{asked[0]}"
    if (height, width) != stored:
        picture = picture.resize((stored[1], stored[0]), Image.Resampling.LANCZOS)
    return picture, "", ""


def _entries(data: Any) -> list[Any] | None:
    """The pictures of an images response. None if it is not one; a list of models has a field `object`."""
    entries = data.get("data") if isinstance(data, dict) else None
    return entries if isinstance(entries, list) and data.get("object") != "list" else None
