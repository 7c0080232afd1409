"""Masks secrets in everything that is shown or written: messages, logs, records, reports, Prefect's database."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import traceback
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"

SHORTEST = 8
"""Characters. Shorter values do not count as secrets, because they would be masked in the middle of words."""

_NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:$|_)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(?:_FILE|_PATH|_URL|_ID|_KEY_ID)$", re.IGNORECASE)

_SECRETS: set[str] = set()
"""Secrets that were registered in this process."""


def hide(secret: str) -> None:
    """Register a secret for `mask`. Needed for secrets that are not in an environment variable named like a key."""
    if len(secret) >= SHORTEST:
        _SECRETS.add(secret)


def mask(text: str) -> str:
    """Replace each secret in `text` by `***`: those registered by `hide`, and values of environment variables that are
    named like a key. Also finds escaped forms, as in Python's repr, JSON, URLs and base64.
    """
    named = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and _NAMES.search(name) and not _NO_SECRET.search(name) and not os.path.exists(value)
    }
    for secret in sorted(_SECRETS | named, key=len, reverse=True):
        for form in _forms(secret):
            text = text.replace(form, MASK)
    return text


class _MaskedRecord(logging.LogRecord):
    """A log record with secrets masked, also in its traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # formatters use this text unchanged
            self.exc_text = mask("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return mask(super().getMessage())


def mask_logs() -> None:
    """Mask secrets in all log records of this process from now on, for any logger and handler."""
    logging.setLogRecordFactory(_MaskedRecord)


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[str, ...]:
    """A secret and its escaped forms, the longest first."""
    forms = set()
    for value in {secret, secret.strip(), *secret.split()}:
        if len(value) < SHORTEST:
            continue
        data = value.encode("utf-8", "surrogateescape")
        forms |= {value, repr(value)[1:-1], repr(data)[2:-1], quote(data), quote(data, safe=""), quote_plus(data)}
        forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for lead in range(3):  # the base64 form of a text depends on its position modulo 3
                encoded = encode(b"\0" * lead + data).decode().rstrip("=")
                forms.add(encoded[4 if lead else 0 : len(encoded) - (1 if (lead + len(data)) % 3 else 0)])
    return tuple(sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True))
