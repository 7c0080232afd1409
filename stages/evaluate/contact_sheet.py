"""Draws the contact sheet of an evaluation: one row per caption, one column per method, captions below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 128
"""Side of a picture on the sheet, in pixels."""
GAP = 4
LINE = 17
MARGIN = 20
INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (120, 120, 126)


@dataclass(frozen=True)
class SheetRow:
    """A caption and its pictures, one per column."""

    caption: str
    pictures: Sequence[Image.Image]
    notes: Sequence[str] = ()
    """Below each picture, such as its scores. Empty: none in this row."""


def contact_sheet(titles: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draw the sheet, RGB. Rows are arranged in blocks side by side, so that the sheet is about square.

    Args:
        titles: the column titles.
        rows: one picture per title in each.
    """
    font = ImageFont.load_default(12)
    width = len(titles) * (CELL + GAP) - GAP
    noted = LINE if any(row.notes for row in rows) else 0
    height = CELL + noted + LINE + 2 * GAP
    blocks = max(1, min(len(rows), round(math.sqrt(len(rows) * height / (width + MARGIN)))))
    depth = -(-len(rows) // blocks)
    size = (MARGIN + blocks * (width + MARGIN), 2 * MARGIN + LINE + depth * height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for block in range(blocks):
        left = MARGIN + block * (width + MARGIN)
        for column, title in enumerate(titles):
            draw.text((left + column * (CELL + GAP), MARGIN), _shortened(title, font, CELL), INK, font)
        for index, row in enumerate(rows[block * depth : (block + 1) * depth]):
            top = MARGIN + LINE + index * height
            for column, picture in enumerate(row.pictures):
                sheet.paste(_cell(picture), (left + column * (CELL + GAP), top))
            for column, note in enumerate(row.notes):
                draw.text((left + column * (CELL + GAP), top + CELL + 2), _shortened(note, font, CELL), INK, font)
            draw.text((left, top + CELL + noted + 2), _shortened(row.caption, font, width), FAINT, font)
    return sheet


def _cell(picture: Image.Image) -> Image.Image:
    # Small pictures are enlarged with sharp pixels, large ones are scaled down smoothly.
    small = max(picture.size) < CELL
    filter = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((CELL, CELL), filter)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
