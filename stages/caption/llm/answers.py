"""Parses an LLM's answer into captions, or a fault with a code. The text is untrusted, and parsing never raises."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json

FAULTS = {
    "refusal": "the model refused to answer",
    "content_filter": "the endpoint's content filter blocked the answer",
    "truncated": "the answer reached its length limit before it had all captions",
    "invalid_json": "the answer is not the JSON that was asked for",
    "empty": "the answer contains no captions",
    "short": "the answers contained fewer captions than requested",
}
"""Code → meaning. Missing captions are requested again in a later round."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"captions": {"type": "array", "items": {"type": "string"}}},
    "required": ["captions"],
    "additionalProperties": False,
}

SHOWN = 120
"""Maximum characters of an endpoint's text in a message."""

_FENCE = re.compile(r"\s*```[a-z]*\s*\n(.*?)(?:\n\s*```\s*)?$", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,4}[.):])\s+")
_QUOTES = "\"'“”‘’`*"


@dataclass(frozen=True)
class Answer:
    """The content of one answer. `fault` is the code for why captions are missing; empty if none are."""

    captions: tuple[str, ...] = ()
    fault: str = ""
    message: str = ""


def read_answer(body: str, asked: int, *, lines_too: bool = True) -> Answer:
    """Parse the body of a chat completion.

    Args:
        body: the response body, unchanged.
        asked: number of captions requested; any more are dropped.
        lines_too: also accept plain text with one caption per line.
    """
    try:
        choice = parse_json(body)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refusal, text = message.get("refusal"), _text(message.get("content"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return _fault("invalid_json", f"no chat completion: {_quoted(body)}")
    if refusal:
        return _fault("refusal", f"the model refused: {_quoted(str(refusal))}")
    if finish == "content_filter":
        return _fault("content_filter", FAULTS["content_filter"])
    cut = finish == "length"
    captions = _captions(text, cut, lines_too)
    if cut:
        shown = (
            f"cut off after {len(captions or ())} of {asked} captions; lower captions_per_request, or raise the length "
            "limit in extra_body"
        )
        return _fault("truncated", shown, captions or (), asked)
    if captions is None:
        return _fault("invalid_json", f"not JSON: {_quoted(text)}")
    if not captions:
        return _fault("empty", f"no caption in {_quoted(text)}" if text.strip() else "the answer is empty")
    return _fault("short", f"{len(captions)} captions instead of {asked}", captions, asked)


def _fault(code: str, message: str, captions: tuple[str, ...] = (), asked: int = 1) -> Answer:
    if len(captions) >= asked:
        return Answer(captions[:asked])
    return Answer(captions, code, f"{code}: {message}")


def _text(content: Any) -> str:
    """The content of a message; some endpoints split it into parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _captions(text: str, cut: bool, lines_too: bool) -> tuple[str, ...] | None:
    """The complete captions in `text`; None if it should be JSON and is not."""
    fenced = _FENCE.match(text)
    body = (fenced[1] if fenced else text).strip()
    if not body:
        return ()
    if body[0] not in "{[":
        return _lines(body, cut) if lines_too else None
    try:
        data = from_json(body, allow_partial=cut)
    except ValueError:
        return None
    found = data.get("captions") if isinstance(data, dict) else data
    if found is None and cut:
        return ()
    if not isinstance(found, list):
        return None
    return tuple(caption for entry in found if isinstance(entry, str) and (caption := clean(entry)))


def _lines(body: str, cut: bool) -> tuple[str, ...]:
    lines = body.splitlines()
    found = [clean(_BULLET.sub("", line)) for line in (lines[:-1] if cut else lines)]
    # if no line has the caption form, the whole answer is chat around captions that never came
    return tuple(line for line in found if line and line[-1] != ":") if any(map(object_phrase, found)) else ()


def clean(caption: str) -> str:
    """A caption as one line, without quotes, asterisks and brackets that a model may have added."""
    return one_line(caption).strip(_QUOTES + " ").replace("[", "").replace("]", "")


def _quoted(text: str) -> str:
    return repr(one_line(text, SHOWN))
