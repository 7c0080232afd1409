"""Parses an LLM's answer into captions, or into a fault code. The text is untrusted, and parsing never raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bootpig.stages.caption.llm.reading import captions_in, without_thoughts
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json

FAULTS = {
    "refusal": "the model refused to answer",
    "content_filter": "the endpoint's content filter blocked the answer",
    "truncated": "the answer reached its length limit before it had all captions",
    "invalid_json": "the answer is not the requested JSON",
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

NATURAL_ENDS = {
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "end",
    "complete",
    "completed",
    "finished",
    "done",
}
"""Lower-case values of `finish_reason` of complete answers. With any other value, the answer was cut off."""

WITHHELD = {
    "content_filter",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
    "image_safety",
    "guardrail",
}
"""Lower-case values of `finish_reason` of answers that a filter withheld."""


@dataclass(frozen=True)
class Answer:
    """The content of one answer. `fault` is the code of the reason why captions are missing, empty if none are."""

    captions: tuple[str, ...] = ()
    fault: str = ""
    message: str = ""


@dataclass(frozen=True)
class Choice:
    """The first choice of a chat completion."""

    text: str
    finish: str
    """`finish_reason` in lower case, empty if there is none."""
    refusal: str = ""
    reasons: bool = False
    """Whether the model's reasoning is in a separate field."""


def completion(body: str) -> Choice | None:
    """The first choice in the body of a chat completion, which may be streamed. None if it contains no choice."""
    try:
        data = parse_json(body)
    except ValueError:
        data = _joined(body)
    try:
        choice = data["choices"][0]
        message = choice["message"] if isinstance(choice.get("message"), dict) else choice["delta"]
        finish = choice.get("finish_reason")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
        return Choice(
            _text(message.get("content")),
            str(finish).strip().casefold() if finish else "",
            str(message.get("refusal") or ""),
            bool(reasoning),
        )
    except (LookupError, TypeError, AttributeError):
        return None


def _joined(body: str) -> Any:
    """Join a streamed completion (`data: {…}` lines) into an ordinary one. None if it is not one."""
    text, reasoning, finish = "", "", None
    for line in body.splitlines():
        name, _, value = line.partition(":")
        if name.strip() != "data" or value.strip() in ("", "[DONE]"):
            continue
        try:
            choice = parse_json(value)["choices"][0]
            delta = choice.get("delta") or choice.get("message") or {}
            text += _text(delta.get("content"))
            reasoning += _text(delta.get("reasoning_content") or delta.get("reasoning"))
            finish = choice.get("finish_reason") or finish
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
    if not (text or reasoning or finish):
        return None
    # a stream without a finish_reason was cut off
    return {"choices": [{"message": {"content": text, "reasoning": reasoning}, "finish_reason": finish or "cut"}]}


@dataclass(frozen=True)
class Written:
    """What a model wrote, without its reasoning. `fault` is the code of the reason why there is nothing."""

    text: str = ""
    cut: bool = False
    """Whether the answer was cut off."""
    finish: str = ""
    """`finish_reason`, for messages."""
    fault: str = ""
    message: str = ""


def read_text(body: str) -> Written:
    """The text in the body of a chat completion."""
    choice = completion(body)
    if choice is None:
        return _nothing("invalid_json", f"not a chat completion: {quoted(body)}")
    if choice.refusal:
        return _nothing("refusal", f"the model refused: {quoted(choice.refusal)}")
    if choice.finish in WITHHELD:
        return _nothing("content_filter", FAULTS["content_filter"])
    cut = choice.finish != "" and choice.finish not in NATURAL_ENDS
    text, only_thoughts = without_thoughts(choice.text)
    if not text.strip() and (only_thoughts or choice.reasons):
        return _nothing(
            "truncated" if cut else "empty",
            "the answer contains only reasoning; raise max_tokens in extra_body, or turn reasoning off "
            "there (reasoning_effort, or chat_template_kwargs: {enable_thinking: false})",
        )
    return Written(text, cut, one_line(choice.finish, 40))


def _nothing(code: str, message: str) -> Written:
    return Written(fault=code, message=f"{code}: {message}")


def read_answer(body: str, asked: int, *, lines_too: bool = True) -> Answer:
    """Parse the captions in the body of a chat completion.

    Args:
        body: the unchanged body.
        asked: number of requested captions. Captions beyond it are left out.
        lines_too: also accept captions in lines and lists, not only in JSON.
    """
    written = read_text(body)
    if written.fault:
        return Answer(fault=written.fault, message=written.message)
    text = written.text
    captions = captions_in(text, cut=written.cut, lines_too=lines_too)
    if written.cut:
        shown = (
            f"cut off after {len(captions or ())} of {asked} captions (finish_reason {written.finish}); "
            "lower captions_per_request, or raise the answer's token limit in extra_body"
        )
        return _fault("truncated", shown, captions or (), asked)
    if captions is None:
        return _fault("invalid_json", f"not JSON: {quoted(text)}")
    if not captions:
        return _fault("empty", f"no caption in {quoted(text)}" if text.strip() else "the answer is empty")
    return _fault("short", f"{len(captions)} captions instead of {asked}", captions, asked)


def _fault(code: str, message: str, captions: tuple[str, ...] = (), asked: int = 1) -> Answer:
    if len(captions) >= asked:
        return Answer(captions[:asked])
    return Answer(captions, code, f"{code}: {message}")


def _text(content: Any) -> str:
    """The text of a message's content, which some endpoints split into parts."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def quoted(text: str) -> str:
    """An endpoint's text for a message."""
    return repr(one_line(text, SHOWN))
