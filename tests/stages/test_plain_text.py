"""Untrusted text is harmless in a terminal and in Markdown."""

from bootpig.stages.plain_text import markdown, one_line, printable

HOSTILE = "a \x1b[31mred\x1b[0m\x07 \x1b]0;title\x07mug\u202e,\r\n\x9b2J on\ta\u200b table\x00"


def test_escapes_and_invisible_characters_go():
    assert one_line(HOSTILE) == "a red mug, 2J on a table"
    assert printable("caption     20 units, ök — 写真 🫖") == "caption     20 units, ök — 写真 🫖"
    assert one_line("abcdefgh", 5) == "abcd…"


def test_markdown_is_text():
    assert markdown("[x](javascript:y) <b>*s*</b>\n# h") == r"\[x\]\(javascript\:y\) \<b\>\*s\*\<\/b\> \# h"
