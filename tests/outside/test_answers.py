"""What language models write around captions: every shape here was seen in an answer of some model.

A caption never becomes a row unless it has the form that the stage demands: no draft, no talk, no piece of markup.
"""

# ruff: noqa: E501 - a shape is one line

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from bootpig.stages.caption.llm.answers import completion, read_answer
from bootpig.stages.caption.phrases import object_phrase

ONE, TWO = "A photo of a red mug, on a wooden table", "A photo of an umbrella, leaning in the rain"
DRAFT = "A photo of a draft, in a thought"


def body(content: Any, finish: Any = "stop", **message: Any) -> str:
    return json.dumps({"choices": [{"finish_reason": finish, "message": {"content": content, **message}}]})


BULLETS = [
    "-",
    "*",
    "•",
    "+",
    "●",
    "▪",
    "–",
    "—",
    "·",
    "‣",
    "◦",
    "■",
    "- [ ]",
    "- [x]",
    ">",
    "> -",
    "#",
    "##",
    "→ ".strip(),
]
NUMBERS = ["{}.", "{})", "({})", "{}:", "#{}:", "[{}]", "**{}.**", "**{}**.", "{}、", "{} -", "{}", "No. {}:", "{}/"]
LABELS = [
    "Caption {}:",
    "**Caption {}:**",
    "caption {} -",
    "Photo {}:",
    "Prompt #{}:",
    "Image {})",
    "*Scene {}:*",
    "Caption:",
]

SHAPES: dict[str, str] = {
    **{f"bullet {mark}": f"{mark} {ONE}\n{mark} {TWO}" for mark in BULLETS},
    **{f"number {mark}": f"{mark.format(1)} {ONE}\n{mark.format(2)} {TWO}" for mark in NUMBERS + LABELS},
    "letters": f"a. {ONE}\nb. {TWO}",
    "letters in brackets": f"(a) {ONE}\n(b) {TWO}",
    "label on a line of its own": f"**Caption 1**\n{ONE}\n\n**Caption 2**\n{TWO}",
    "table": f"| # | Caption |\n|---|---|\n| 1 | {ONE} |\n| 2 | {TWO} |",
    "table without borders": f"No | Caption\n--- | ---\n1 | {ONE}\n2 | {TWO}",
    "tags": f"<captions>\n<caption>{ONE}</caption>\n<caption>{TWO}</caption>\n</captions>",
    "tags with attributes": f'<caption id="1">{ONE}</caption><caption id="2">{TWO}</caption>',
    "list items": f"<ul><li>{ONE}</li><li>{TWO}</li></ul>",
    "block quotes": f"> {ONE}\n>\n> {TWO}",
    "wrapped": "A photo of a red mug,\non a wooden table\nA photo of an umbrella, leaning\nin the rain",
    "wrapped in a list": "1. A photo of a red mug, on a\n   wooden table\n2. A photo of an umbrella,\n   leaning in the rain",
    "joined by semicolons": f"{ONE}; {TWO}",
    "joined by semicolons and numbers": f"1) {ONE}; 2) {TWO}",
    "joined by a bar": f"{ONE} | {TWO}",
    "quoted and joined": f'"{ONE}", "{TWO}"',
    "emphasis": f"**{ONE}**\n*{TWO}*",
    "emphasised parts": "A photo of a **red mug**, on a *wooden table*\nA photo of an `umbrella`, leaning in the rain",
    "underscores": "A photo of a __red mug__, on a wooden table\nA photo of an _umbrella_, leaning in the rain",
    "square brackets": "A photo of a [red mug], [on a wooden table]\nA photo of an [umbrella], leaning in the rain",
    "word counts": f"{ONE} (9 words)\n{TWO} [9 words]",
    "word counts behind a dash": f"{ONE} – 9 words\n{TWO} - 9 words.",
    "end tokens": f"{ONE}\n{TWO}<|im_end|>",
    "end tokens of others": f"<s>{ONE}\n{TWO}</s>",
    "turns": f"<|im_start|>assistant\n{ONE}\n{TWO}<|eot_id|>",
    "heading": f"# Captions\n\n{ONE}\n{TWO}",
    "introduction": f"Here are 2 captions.\n\n{ONE}\n{TWO}\n\nLet me know if you need more!",
    "introduction with a colon": f"Sure! Here are your captions:\n{ONE}\n{TWO}\nEach begins with “A photo of a”, as you asked.",
    "entities": "A photo of a red&nbsp;mug, on a wooden table\nA photo of an umbrella, leaning in the&#32;rain",
    "line separators": f"{ONE}\u2028{TWO}",
    "carriage returns": f"{ONE}\r{TWO}\r",
    "byte order mark": f"\ufeff{ONE}\n\u200b{TWO}",
    "trailing commas": f'"{ONE}",\n"{TWO}",',
    "typographic quotes": f"“{ONE}”\n„{TWO}“",
    "fenced lines": f"```\n{ONE}\n{TWO}\n```",
    "fenced text": f"```text\n1. {ONE}\n2. {TWO}\n```",
    "json": json.dumps({"captions": [ONE, TWO]}),
    "json list": json.dumps([ONE, TWO], indent=2),
    "json of objects": json.dumps({"captions": [{"caption": ONE, "object": "red mug"}, {"caption": TWO}]}),
    "json by number": json.dumps({"1": ONE, "2": TWO}),
    "json under another name": json.dumps({"result": {"items": [ONE, TWO]}}),
    "fenced json": f"```json\n{json.dumps({'captions': [ONE, TWO]}, indent=2)}\n```",
    "talk before a fence": f"Sure! Here are 2 captions:\n\n```json\n{json.dumps({'captions': [ONE, TWO]}, indent=2)}\n```\nEnjoy!",
    "talk around bare json": f"Sure! Here you go:\n{json.dumps({'captions': [ONE, TWO]}, indent=2)}\nHope that helps!",
    "talk in the same line": f"Here you go: {json.dumps([ONE, TWO])} Hope that helps!",
    "trailing comma": f'{{"captions": ["{ONE}", "{TWO}",]}}',
    "newlines in strings": '{"captions": ["A photo of a red mug,\n on a wooden table", "A photo of an umbrella, leaning\n in the rain"]}',
    "numbers in strings": json.dumps({"captions": [f"1. {ONE}", f"2. {TWO}"]}),
    "json lines": f"{json.dumps({'caption': ONE})}\n{json.dumps({'caption': TWO})}",
    "json lines of strings": f"{json.dumps(ONE)}\n{json.dumps(TWO)}",
    "python list": repr([ONE, TWO]),
    "unquoted key": f'{{captions: ["{ONE}", "{TWO}"]}}',
    "missing bracket": f'{{"captions": ["{ONE}", "{TWO}"}}',
    "missing comma": f'{{"captions": ["{ONE}"\n "{TWO}"]}}',
    "json with a mark": "\ufeff" + json.dumps({"captions": [ONE, TWO]}),
    "two objects": f'{{"captions": ["{ONE}"]}}\n{{"captions": ["{TWO}"]}}',
    "thought, then json": f"<think>\nMaybe {DRAFT}\n{DRAFT}\n</think>\n" + json.dumps({"captions": [ONE, TWO]}),
    "thought, then lines": f"<think>\n{DRAFT}\n</think>\n\n{ONE}\n{TWO}",
    "thought without its opening": f"{DRAFT}\n{DRAFT}</think>\n{ONE}\n{TWO}",
    "thinking": f"<thinking>1. {DRAFT}\n2. {DRAFT}</thinking>1. {ONE}\n2. {TWO}",
    "thought in brackets": f"[THINK]{DRAFT}[/THINK]{ONE}\n{TWO}",
    "thought in triangles": f"◁think▷{DRAFT}◁/think▷{ONE}\n{TWO}",
    "channels": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{ONE}\n{TWO}",
    "inline fence": f"```json {json.dumps([ONE, TWO])} ```",
    "the word json": "json\n" + json.dumps({"captions": [ONE, TWO]}),
    "a label before json": "Output: " + json.dumps({"captions": [ONE, TWO]}),
    "keycaps": f"1️⃣ {ONE}\n2️⃣ {TWO}",
    "full-width numbers": f"１．{ONE}\n２．{TWO}",
    "circled numbers": f"① {ONE}\n② {TWO}",
    "roman numbers": f"i. {ONE}\nii. {TWO}",
    "arrows": f"→ {ONE}\n➤ {TWO}",
    "emojis": f"🖼️ {ONE}\n✅ {TWO}",
    "escaped json": '{\\"captions\\": [\\"' + ONE + '\\", \\"' + TWO + '\\"]}',
    "json in json": json.dumps(json.dumps({"captions": [ONE, TWO]})),
    "a tool call": '{"name": "write", "arguments": {"captions": ' + json.dumps([ONE, TWO]) + "}}",
    "an assignment": f'captions = [\n "{ONE}",\n "{TWO}",\n]',
    "a set": f'{{"{ONE}", "{TWO}"}}',
    "names": f'caption_1="{ONE}"\ncaption_2="{TWO}"',
    "subjects as labels": f"Mug: {ONE}\nUmbrella: {TWO}",
    "yaml": f"captions:\n  - {ONE}\n  - '{TWO}'",
    "csv": f'id,caption\n1,"{ONE}"\n2,"{TWO}"',
    "latex": f"\\item {ONE}\n\\item {TWO}",
    "breaks": f"{ONE}<br>{TWO}<br/>",
    "comments": f"{ONE} <!-- ok -->\n{TWO}",
    "footnotes": f"{ONE}[1]\n{TWO}[2]",
    "invisible characters": f"\u2060{ONE}\n\u200e\u3000{TWO}",
    "two thoughts": f"<think>{DRAFT}</think><think>{DRAFT}</think>{ONE}\n{TWO}",
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_captions_in_every_shape(name: str) -> None:
    answer = read_answer(body(SHAPES[name]), 2)
    assert answer.captions == (ONE, TWO), (answer, SHAPES[name])


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{DRAFT}",
        f"<think>{DRAFT}</think>",
        f"<|channel|>analysis<|message|>{DRAFT}",
        "I cannot help with that.",
        "A photo of a",
        "Each caption has the form “A photo of a <object>, <position> <scene>”.",
        "A photo of a <object>, <position> <scene>",
        "A photo of a {object}, {position} {scene}",
        "```json\n{",
        "{}",
        "[]",
        '{"captions": []}',
        '{"captions": ["{", "```json", "\\"]"]}',
    ],
)
def test_nothing_is_a_caption_there(text: str) -> None:
    answer = read_answer(body(text), 2)
    assert answer.captions == () and answer.fault in ("empty", "invalid_json")


def test_an_apostrophe_written_as_an_entity_is_one() -> None:
    (caption,) = read_answer(body("A photo of a kid&#39;s mug, on a shelf &amp; a book"), 1).captions
    assert caption == "A photo of a kid's mug, on a shelf & a book"


def test_reasoning_alone_names_the_setting_that_helps() -> None:
    for answer in (
        read_answer(body(None, reasoning_content=f"Let me think. {DRAFT}"), 2),
        read_answer(body("", "length", reasoning="…"), 2),
        read_answer(body(f"<think>{DRAFT}", "length"), 2),
    ):
        assert not answer.captions and "extra_body" in answer.message and "reasoning" in answer.message


@pytest.mark.parametrize(
    "finish", ["length", "MAX_TOKENS", "max_tokens", "model_length", "tool_calls", "OTHER", "error"]
)
def test_every_end_that_is_not_natural_cuts(finish: str) -> None:
    answer = read_answer(body(f"{ONE}\nA photo of an umbrella, leaning in the r", finish), 2)
    assert answer.captions == (ONE,) and answer.fault == "truncated"
    answer = read_answer(body(f'{{"captions": ["{ONE}", "A photo of an umbrella, lean', finish), 2)
    assert answer.captions == (ONE,) and answer.fault == "truncated"


@pytest.mark.parametrize("finish", ["stop", "STOP", "end_turn", "eos", None, ""])
def test_natural_ends(finish: Any) -> None:
    assert read_answer(body(f"{ONE}\n{TWO}", finish), 2).captions == (ONE, TWO)


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "RECITATION"])
def test_a_filter_is_a_filter(finish: str) -> None:
    assert read_answer(body(ONE, finish), 1).fault == "content_filter"


def test_parts_with_a_null_among_them() -> None:
    parts = [{"type": "text", "text": f"{ONE}\n"}, None, {"type": "text", "text": None}, {"type": "text", "text": TWO}]
    assert read_answer(body(parts), 2).captions == (ONE, TWO)


def test_a_streamed_answer_is_used() -> None:
    text = f"{ONE}\n{TWO}"
    chunks: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": text[k : k + 7]}}]} for k in range(0, len(text), 7)
    ]
    chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"total_tokens": 3}}]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    assert read_answer(f": comment\n\n{stream}data: [DONE]\n\n", 2).captions == (ONE, TWO)
    cut = stream[: stream.index('"finish_reason"')].rpartition("data:")[0]
    assert read_answer(cut, 2).captions == (ONE,), "a stream that broke off"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"error": "Unexpected endpoint or method. (POST /chat/completions)"}',
        '{"choices": null, "error": {"code": 429, "message": "slow down"}}',
        '{"choices": []}',
        "<html><body>502 Bad Gateway</body></html>",
        "data: [DONE]\n\n",
        '{"choices": [{"message": null}]}',
        '{"choices": {"0": {}}}',
    ],
)
def test_a_body_without_a_choice_is_no_completion(text: str) -> None:
    assert completion(text) is None
    assert read_answer(text, 2).fault == "invalid_json"


def test_answers_at_random() -> None:
    """Shapes cut, nested and mixed at random: no exception, and whatever comes out has the form."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    shapes = list(SHAPES.values())
    for _ in range(600):
        pieces = [dice.choice(shapes) for _ in range(dice.randint(1, 3))]
        text = dice.choice(["", "\n", "\n\n", " "]).join(pieces)
        for _ in range(dice.randint(0, 3)):
            place = dice.randrange(len(text) + 1)
            junk = dice.choice(
                ["{", "}", "[", "]", '"', "\\", "```", "<think>", "</think>", "|", "\x00", "🦊", "\ufffd"]
            )
            text = (
                text[:place]
                + dice.choice([junk, "", dice.choice(string.printable)])
                + text[place + dice.randint(0, 3) :]
            )
        text = text[: dice.randint(0, len(text))] if dice.random() < 0.3 else text
        finish = dice.choice(["stop", "length", None])
        for lines_too in (True, False):
            answer = read_answer(body(text, finish), 8, lines_too=lines_too)
            assert answer.fault or len(answer.captions) == 8
            for caption in answer.captions:
                assert "\n" not in caption and not set("{}<>|\\") & set(caption) and "```" not in caption, (
                    caption,
                    text,
                )
                # a string of valid JSON may have another form: its row is rejected
                assert object_phrase(caption) is not None or "[" in text or "{" in text, (caption, text)


def test_lists_at_random() -> None:
    """Bullets, numbers, labels and dresses mixed: each caption comes out once, in order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(300):
        nouns = dice.sample(["mug", "lamp", "boat", "cat", "drum", "kite"], dice.randint(1, 6))
        captions = [f"A photo of a {dice.choice(['red', 'small', 'old'])} {noun}, on the left" for noun in nouns]
        marks = dice.choice([[f"{mark} " for mark in BULLETS], [f"{mark} " for mark in NUMBERS + LABELS], [""]])
        dress = dice.choice(["{}", '"{}"', "**{}**", "“{}”", "{}", "{} (9 words)", "{}  "])
        mark = dice.choice(marks)
        lines = [mark.format(k) + dress.format(caption) for k, caption in enumerate(captions, 1)]
        text = dice.choice(["\n", "\n\n", "\r\n"]).join(lines)
        text = dice.choice(["", "Here are the captions:\n\n", "# Captions\n", f"<think>{DRAFT}</think>\n"]) + text
        text += dice.choice(["", "\n", "\n\nI hope these help!", "<|im_end|>"])
        assert read_answer(body(text), len(captions)).captions == tuple(captions), text
