"""Keeps secrets out of everything that is shown or written: messages, logs, records, reports, Prefect's database."""

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
"""Characters; what is shorter is no secret, and would be masked in the middle of words."""

_NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:$|_)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(?:_FILE|_PATH|_URL|_ID|_KEY_ID)$", re.IGNORECASE)

_SECRETS: set[str] = set()
"""Of this process."""


def hide(secret: str) -> None:
    """From now on `mask` hides this, too: a secret that is in no environment variable with a telling name."""
    if len(secret) >= SHORTEST:
        _SECRETS.add(secret)


def mask(text: str) -> str:
    """`text` with `***` in place of each secret: of those of `hide`, and of environment variables named like a key.

    Also where a secret is escaped: as in Python's repr, in JSON, in a URL, in base64.
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
    """A log record without secrets, its traceback included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # formatters take this text as it is
            self.exc_text = mask("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return mask(super().getMessage())


def mask_logs() -> None:
    """From now on no log record of this process holds a secret, whoever's logger or handler it is."""
    logging.setLogRecordFactory(_MaskedRecord)


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[str, ...]:
    """A secret, and how it looks when it is escaped; the longest first."""
    forms = set()
    for value in {secret, secret.strip(), *secret.split()}:
        if len(value) < SHORTEST:
            continue
        data = value.encode("utf-8", "surrogateescape")
        forms |= {value, repr(value)[1:-1], repr(data)[2:-1], quote(data), quote(data, safe=""), quote_plus(data)}
        forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for lead in range(3):  # in base64 a text looks different at each of three places
                encoded = encode(b"\0" * lead + data).decode().rstrip("=")
                forms.add(encoded[4 if lead else 0 : len(encoded) - (1 if (lead + len(data)) % 3 else 0)])
    return tuple(sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True))
