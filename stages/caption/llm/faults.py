"""Why a request got no answer: a code each, and the exceptions that carry it."""

from __future__ import annotations

FAULTS = {
    "rate_limited": "the endpoint answered 429 to every try: too many requests or tokens a minute",
    "quota": "the account at the endpoint has nothing left (429, insufficient_quota)",
    "server_error": "the endpoint answered with an error of its own (5xx) to every try",
    "timeout": "no answer came in time, at every try",
    "unreachable": "nothing answers at the endpoint's address",
    "batch_failed": "the endpoint did not carry out the batch",
}
"""Code → what it means. Nothing came back, so nothing is in the journal."""


class Fault(Exception):
    """A request got no answer. One line, the code in front."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class SchemaRefused(Exception):
    """The endpoint answers 400 to a request with a JSON schema."""
