"""Codes and exceptions for requests that got no answer."""

from __future__ import annotations

FAULTS = {
    "rate_limited": "the endpoint answered every attempt with 429: too many requests or tokens per minute",
    "quota": "the account's quota at the endpoint is used up (insufficient_quota)",
    "server_error": "the endpoint answered every attempt with a server error (5xx)",
    "timeout": "every attempt timed out",
    "unreachable": "cannot connect to the endpoint",
    "batch_failed": "the endpoint did not process the batch",
}
"""Code → meaning. There was no answer, so nothing is in the journal."""


REFUSED = "refused"
"""The code of a request that the endpoint rejects because of its own content."""

OF_ITS_OWN = (REFUSED, "content_filter")
"""Codes of requests without an answer because of their own content: others may be answered."""


class Fault(Exception):
    """A request got no answer. The message is one line that starts with the code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class SchemaRefused(Exception):
    """The endpoint answered 400 to a request with a JSON schema."""
