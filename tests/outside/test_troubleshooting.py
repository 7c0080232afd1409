"""docs/troubleshooting.md quotes messages that the code really says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PACKAGES = ("flows", "stages", "models", "storage")


def literals() -> str:
    """All pieces of text in the code, one after the other; what an f-string fills in is left out."""
    pieces = []
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    pieces.append(node.value)
    return "\n".join(pieces)


def test_every_message_is_in_the_code() -> None:
    text = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    said = literals()
    assert len(messages) > 20
    assert [message for message in messages if message not in said] == []
