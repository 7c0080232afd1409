"""Sends one request to an OpenAI-compatible images endpoint, and fetches a picture that an answer only names."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import openai

from bootpig.stages.caption.llm.client import LLMClient, NoAnswer
from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.plain_text import one_line
from bootpig.stages.synthesize.answers import is_answer
from bootpig.stages.synthesize.endpoint import ImagesConfig
from bootpig.storage.faults import is_transient_status
from bootpig.storage.retry import ATTEMPTS, retrying

MOST_BYTES = 2**26
"""Of a picture that is fetched from its address."""

_OWN = {"prompt", "model", "n", "size"}
_PORTS = {"http": 80, "https": 443}


class ImagesClient(LLMClient):
    """A client of one images endpoint. Arguments and errors are those of `LLMClient`."""

    answers = "an images response"
    settings = "quality, send_seed, extra_body, and synthesize.height and width"

    def send(self, request: dict[str, Any]) -> str:
        """Send a request once. Returns the body of the answer, which may be a refusal to draw the picture."""
        known = {name: value for name, value in request.items() if name in _OWN}
        others = {name: value for name, value in request.items() if name not in _OWN}
        try:
            body: str = self.api.images.with_raw_response.generate(**known, extra_body=others).text
        except openai.APIStatusError as error:
            if is_answer(error.response.text):
                return error.response.text
            raise
        if not is_answer(body):
            raise NoAnswer(body)
        self.answered()
        return body


class NotFetched(ValueError):
    """A picture cannot be fetched from its address, now or later. One line."""


class Elsewhere(NotFetched):
    """The picture's address does not belong to the endpoint."""


def fetch_picture(config: ImagesConfig, url: str) -> bytes:
    """The picture at an address that the endpoint answered with, at most `MOST_BYTES`.

    Only the endpoint's own scheme, host and port are asked, and redirects are not followed: an answer must not make
    this machine ask others in its network.

    Raises:
        Elsewhere: the address is another server's.
        NotFetched: there is no such picture, or it is too large.
        Fault: there was no answer.
    """
    try:
        address = urljoin(f"{config.base_url}/", url)
        if (server := _server(address)) != _server(config.base_url):
            raise Elsewhere(f"its picture is at another server, {one_line(str(server[1]), 80)!r}")
    except ValueError as error:
        raise error if isinstance(error, NotFetched) else NotFetched("its picture's address is not a URL") from None
    key = config.key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def fetch() -> bytes:
        with (
            httpx2.Client(follow_redirects=False, timeout=config.timeout, headers=headers) as client,
            client.stream("GET", address) as response,
        ):
            if response.status_code != 200:
                raise _Status(response.status_code)
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise NotFetched(f"its picture has more than {MOST_BYTES // 2**20} MiB")
            return bytes(data)

    try:
        return retrying(_is_transient, attempts=min(config.max_retries + 1, ATTEMPTS))(fetch)
    except _Status as error:
        if is_transient_status(error.status):
            raise Fault("server_error", f"{config.base_url} answers {error.status} for a picture's address") from None
        raise NotFetched(f"its picture's address is answered with {error.status}") from None
    except httpx2.TimeoutException:
        raise Fault("timeout", f"no picture from {config.base_url} within {config.timeout:g} s") from None
    except httpx2.HTTPError as error:
        raise Fault("unreachable", f"{config.base_url}: {one_line(str(error), 100)}") from None
    except httpx2.InvalidURL:
        raise NotFetched("its picture's address is not a URL") from None


class _Status(Exception):
    """A status other than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, _Status):
        return is_transient_status(error.status)
    return isinstance(error, httpx2.TransportError)


def _server(address: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address. Raises ValueError if it is not a URL."""
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
