"""Parses JSON from outside: from a store, a server or a file that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The value that `data` holds.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or holds a number with thousands of digits.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
