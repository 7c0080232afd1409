"""Parses untrusted JSON: from a store, a server, or a file that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The parsed value.

    Raises:
        ValueError: `data` is not JSON, not UTF-8, nested too deeply, or has a number with thousands of digits.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
