"""Finds the captions in what a language model wrote: JSON, almost JSON, lists or tables, with or without prose.

From anything but valid JSON, only text of the form `A photo of a <object>, …` is accepted, so that an introduction or
markup cannot become a caption.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import json_repair
from pydantic_core import from_json

from bootpig.stages.caption.phrases import OPENING, object_phrase
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json

_THOUGHT = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|analysis|reflection|scratchpad)"
_THINKING = re.compile(rf"[<\[◁]({_THOUGHT})\b[^>\]▷\n]*[>\]▷].*?[<\[◁]/\1\s*[>\]▷]", re.DOTALL | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"[<\[◁]/{_THOUGHT}\s*[>\]▷]", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(rf"[<\[◁]{_THOUGHT}\b[^>\]▷\n]*[>\]▷]", re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|[a-z_]+\|>[^<]*)?<\|message\|>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>", re.IGNORECASE)

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE)
_TOKEN = re.compile(r"<\|[^|<>\n]{0,60}\|>|</?s>|\[/?INST\]|<(?:bos|eos|pad|end_of_turn|start_of_turn)>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FOOTNOTE = re.compile(r"(?<=\w)\s?\[\^?\d{1,3}\](?=\W*$)")
_TAG = re.compile(r"</?[A-Za-z][\w:-]{0,40}(?:\s[^<>\n]{0,200})?/?>")
_JSON_BEGINS = re.compile(r"[\[{]\s*(?=[\[{\"'“”‘’\d}\]])|\{\s*(?=captions?\b)")
_COUNTED = re.compile(r"\s*[(\[–—-]+\s*\d{1,3}\s*words?\s*[)\]]*\s*[.,;]?\s*$", re.IGNORECASE)
_EMPHASIS = re.compile(r"\*{1,3}|`{1,3}|~~|(?<!\w)_{1,3}|_{1,3}(?!\w)")
_QUOTE = re.compile(r'(?<!\\)"')
_QUOTES = "\"'“”‘’„«»`*_~"
_NUMBER = r"(?:\d{1,4}|[\u2460-\u24ff\u2776-\u2793]|[ivxlc]{1,5}(?=[.)])|[a-z](?=[.)]\s))"
_NAMED = r"(?:captions?|photos?|images?|pictures?|prompts?|scenes?|answers?|descriptions?|items?|no|nr)"
_LABEL = (
    rf"{_NAMED}\.?\s*#?\d*\s*[).:–—-]+|{_NAMED}\.?\s*(?=#?\d)|x(?=\])|item\s|[^\W\d][\w #&'’/-]{{0,39}}?\s*[*_]*\s*[:=]"
)
_MARK = re.compile(rf"\s+|[^\w\s]+|{_NUMBER}|{_LABEL}", re.IGNORECASE)
"""Text that may precede a caption on its line."""
_NEXT = re.compile(rf"[;|.!/”\"]+\s*[\"“'*]*\s*(?:[(\[]?{_NUMBER}[.):\]]*\s*)?[\"“'*]*(?={OPENING})", re.IGNORECASE)
"""Text between two captions on one line."""
_BEGINS = re.compile(OPENING, re.IGNORECASE)
_MARKUP = re.compile(r"[{}<>|\\]|```|\*\*|\"\s*[:,\]]|https?://")
_BREAKS = re.compile(r"\r\n?|[\n\v\f\x1c-\x1e\x85\u2028\u2029]")
LONGEST = 60
"""Words. Longer lines are prose, not captions."""


def without_thoughts(text: str) -> tuple[str, bool]:
    """Remove a model's reasoning. Returns the text after it, and whether there was nothing else."""
    if final := list(_FINAL.finditer(text)):
        return text[final[-1].end() :], False
    if _CHANNEL.search(text):
        return "", True
    left = _THINKING.sub("\n", text)
    if ends := list(_THOUGHT_ENDS.finditer(left)):  # some servers remove the opening tag
        left = left[ends[-1].end() :]
    thinks = left != text
    if (begins := _THOUGHT_BEGINS.search(left)) is not None:  # cut off during reasoning
        left, thinks = left[: begins.start()], True
    return left, thinks and not left.strip()


def captions_in(text: str, *, cut: bool = False, lines_too: bool = True) -> tuple[str, ...] | None:
    """The captions in `text`, in order.

    Args:
        cut: the text was cut off, so the last caption may be incomplete. It is left out unless the text after it shows
            that it is complete.
        lines_too: also accept lists and lines, not only JSON.

    Returns:
        None if the text looks like JSON but nothing can be read from it.
    """
    # removes byte order marks, direction marks and zero-width characters; keeps the joiner of emojis
    text = "".join(c for c in text if c == "\u200d" or unicodedata.category(c) != "Cf").strip()
    if not text:
        return ()
    body = _unfenced(text)
    if '\\"' in body and not re.search(r'(?<!\\)"', body.strip('"')):  # JSON as a string of JSON
        body = body.strip('"').replace('\\"', '"').replace("\\n", "\n")
    found = _from_valid_json(body, cut)
    if found is not None:
        return found
    looks_like_json = body.startswith(("{", "[")) or "```json" in text.casefold()
    found = _from_almost_json(body, cut)
    if found or not lines_too:
        return found or None
    return _from_lines(text, cut) or (None if looks_like_json else ())


def _unfenced(text: str) -> str:
    """The content of the first fenced block that looks like JSON, else the whole text."""
    blocks = _FENCE.split(text)
    for block in blocks[1::2]:
        if block.strip().startswith(("{", "[")):
            return block.strip()
    return text


def _from_valid_json(body: str, cut: bool) -> tuple[str, ...] | None:
    """The captions in valid JSON. None if it is not valid JSON, or contains no captions."""
    if not body.startswith(("{", "[")):
        return None
    try:
        data = from_json(body, allow_partial=cut)
    except ValueError:
        return None
    found = data.get("captions") if isinstance(data, dict) else data
    if cut and data in ({}, []):
        return ()
    if not isinstance(found, list):
        return tuple(filter(_is_caption, map(clean, _texts(data)))) or None
    captions: list[str] = []
    for entry in found:
        if isinstance(entry, str):  # of any form: the stage rejects rows of another form
            captions += [text] if " " in (text := clean(entry)) and not _MARKUP.search(text) else []
        else:
            captions += filter(_is_caption, map(clean, _texts(entry)))
    return tuple(captions)


def _texts(data: Any) -> Iterator[str]:
    """All strings in a JSON value, in order."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for name, value in data.items():  # json_repair reads a set of strings as names and values
            yield from _texts(name)
            yield from _texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)


def _from_almost_json(body: str, cut: bool) -> tuple[str, ...]:
    begin = _JSON_BEGINS.search(body)
    if begin is None:
        return ()
    values = list(_json_lines(body))
    if not values:
        rest = body[begin.start() :]
        try:
            # wrapped in a list, so that several objects in a row are all read
            values = [json_repair.loads(f"[{rest}" if rest.startswith("{") else rest)]
        except (ValueError, RecursionError, LookupError, TypeError):
            return ()
    found = [clean(text) for text in _texts(values)]
    if found and (cut or len(_QUOTE.findall(body[begin.start() :])) % 2):
        found.pop()  # json_repair closes a string that was cut off
    return tuple(filter(_is_caption, found))


def _json_lines(body: str) -> Iterator[Any]:
    """The JSON values of a text that has one per line. Empty if a line is not JSON."""
    values = []
    for line in body.splitlines():
        if line.strip():
            try:
                values.append(parse_json(line.strip().rstrip(",")))
            except ValueError:
                return
    yield from values


def _from_lines(text: str, cut: bool) -> tuple[str, ...]:
    found: list[str] = []
    open_line = False
    """Whether the next line may continue the last caption."""
    lines = list(_lines(text))
    for number, line in enumerate(lines):
        rest, marked = _unmarked(line)
        if _BEGINS.match(rest):
            pieces = [piece for piece in _NEXT.split(rest) if piece]
            found += pieces
            open_line = True
        elif open_line and not marked and _carries_on(found[-1], line):
            found[-1] = f"{found[-1]} {line.strip()}"
        else:
            open_line = False
        if cut and number == len(lines) - 1 and open_line and found:
            found.pop()
    return tuple(caption for piece in found if _is_caption(caption := clean(piece)))


def _lines(text: str) -> Iterator[str]:
    text = html.unescape(html.unescape(_TOKEN.sub("\n", _COMMENT.sub("", text))))
    for line in _BREAKS.split(_TAG.sub("\n", text)):
        yield from line.split("|")


def _unmarked(line: str) -> tuple[str, bool]:
    """Remove bullets, numbers, labels and quotes at the start of a line. Returns (rest, whether there were any)."""
    place, marked = 0, False
    while not _BEGINS.match(line, place) and (mark := _MARK.match(line, place)) is not None and mark.end() > place:
        marked = marked or not mark[0].isspace()
        place = mark.end()
    return line[place:], marked


def _carries_on(caption: str, line: str) -> bool:
    """Whether a line is the rest of a wrapped caption."""
    text = line.strip()
    if not text or caption.rstrip(_QUOTES + " ").endswith((".", "!", "?", ";")):
        return False
    return (text[0].islower() or caption.rstrip().endswith(",")) and not text.endswith(":")


def _is_caption(caption: str) -> bool:
    return (
        object_phrase(caption) is not None
        and _MARKUP.search(caption) is None
        and len(caption.split()) <= LONGEST
        and len(_BEGINS.findall(caption)) == 1
    )


def clean(caption: str) -> str:
    """The caption as one line, without the marks, quotes, emphasis and brackets that models put around it."""
    text = one_line(_TAG.sub("", html.unescape(html.unescape(_TOKEN.sub("", caption)))))
    rest, _ = _unmarked(text)
    text = rest if _BEGINS.match(rest) else text
    text = _FOOTNOTE.sub("", _COUNTED.sub("", _EMPHASIS.sub("", text))).replace("[", "").replace("]", "")
    return text.strip(_QUOTES + " ;|\\").rstrip(",").strip(_QUOTES + " ")
