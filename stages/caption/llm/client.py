"""Sends one request to an OpenAI-compatible endpoint, with retries. Every failure has a code and a one-line message."""

from __future__ import annotations

import difflib
import math
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import openai
from tenacity import RetryCallState
from tenacity.wait import wait_base

from bootpig.stages.caption.llm.answers import completion
from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.faults import REFUSED, Fault, SchemaRefused
from bootpig.stages.engine.contract import InputError
from bootpig.stages.plain_text import one_line
from bootpig.storage.faults import is_transient_status
from bootpig.storage.jsonio import parse_json
from bootpig.storage.retry import backoff, retrying
from bootpig.storage.secrets import mask

LONGEST_WAIT = 3600.0
"""Seconds. A request with a longer Retry-After is not retried."""

TOLD_WAIT = 5.0
"""Seconds. Longer pauses are shown to the user."""

OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of an account whose quota is used up, with a status of 429 or 400."""

T = TypeVar("T")


class LLMClient:
    """A client of one endpoint, for chat completions.

    Args:
        config: the endpoint.
        is_proven: whether it has answered requests with these settings. A request that it rejects then concerns that
            request only, and not the settings. None: what it rejects always concerns the settings.

    Raises:
        InputError: the environment variable for the key is not set.
    """

    answers = "a chat completion"
    """What it takes for an answer, for messages."""
    settings = "model, temperature, extra_body"
    """The settings that make up a request, for messages."""

    def __init__(self, config: EndpointConfig, *, is_proven: bool | None = None) -> None:
        self.config = config
        self._is_proven = is_proven
        key = config.key()
        self._stopped = threading.Event()
        self._waiting = (0.0, 0.0)
        """End of the current pause on the monotonic clock, and its length, in seconds."""
        # the client's own retries ignore a Retry-After above two minutes and cannot be stopped
        self.api = openai.OpenAI(
            api_key=key or "none",
            base_url=config.base_url,
            max_retries=0,
            timeout=openai.Timeout(config.timeout, connect=min(config.timeout, 10.0)),
        )

    def stop(self) -> None:
        """Stop retrying. Requests that wait for a retry fail."""
        self._stopped.set()

    def ask(self, request: dict[str, Any]) -> tuple[str, int]:
        """Send a request. Returns the unchanged body of the answer, in which only the key is masked, and the number of
        retries.

        Raises:
            Fault: there was no answer.
            SchemaRefused: the endpoint does not accept `response_format`, or something else in the request.
            InputError: the key, the model, the address or the request cannot be used.
        """
        body, retries = self.call(lambda: self.send(request), schema="response_format" in request)
        return mask(body), retries

    def send(self, request: dict[str, Any]) -> str:
        """Send a request once. Returns the body of the answer. Raises `NoAnswer` if it is none."""
        body: str = self.api.chat.completions.with_raw_response.create(**_arguments(request)).text
        if completion(body) is None:
            raise NoAnswer(body)
        self.answered()
        return body

    def answered(self) -> None:
        """Note that the endpoint has answered a request with these settings."""
        self._is_proven = None if self._is_proven is None else True

    def call(self, request: Callable[[], T], *, schema: bool = False) -> tuple[T, int]:
        """Call `request()`, retrying transient errors. Returns (result, number of retries). Raises like `ask`."""
        tries = self.config.max_retries + 1
        again = retrying(_is_transient, attempts=tries, pause=_Pause(self._waits), stopped=self._stopped)
        try:
            return again(request), again.statistics["attempt_number"] - 1
        except (openai.APIError, NoAnswer) as error:
            raise self.explained(error, again.statistics["attempt_number"], schema) from None

    def wait(self) -> str:
        """A text about the current pause if it is long enough to be shown, else empty."""
        until, seconds = self._waiting
        left = until - time.monotonic()
        return f"the endpoint asks to wait {seconds:.0f} s, {left:.0f} s left" if left > 0 else ""

    def _waits(self, seconds: float) -> None:
        if seconds >= TOLD_WAIT:
            self._waiting = (time.monotonic() + seconds, seconds)

    def explained(self, error: openai.APIError | NoAnswer, tries: int, schema: bool) -> Exception:
        """The exception to raise for an error after `tries` tries. `schema`: the request asked for a format."""
        problem = self._problem(error, tries, schema)
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if self._is_proven and status in (400, 422) and isinstance(problem, InputError):
            return Fault(REFUSED, str(problem).partition("bad_request: ")[2])
        return problem

    def _problem(self, error: openai.APIError | NoAnswer, tries: int, schema: bool) -> Exception:
        url, section = self.config.base_url, self.config.section
        tried = f"{tries} tries" if tries > 1 else "1 try"
        if isinstance(error, NoAnswer):
            return self._no_answer(error, tried)
        said = one_line(mask(_message(error)), 200)
        if isinstance(error, openai.APITimeoutError):
            return Fault("timeout", f"no answer from {url} within {self.config.timeout:g} s ({tried})")
        if isinstance(error, openai.APIConnectionError):
            return Fault(
                "unreachable", f"{url}: {one_line(str(error.__cause__ or error), 100)} ({tried}); is it running?"
            )
        if not isinstance(error, openai.APIStatusError):
            return Fault("server_error", f"{url}: {said} ({tried})")
        status = error.status_code
        if error.code in OUT_OF_MONEY:
            return Fault("quota", f"{url} answers {status} ({tried}): {said}")
        if status in (401, 403):
            code = "unauthorized" if status == 401 else "forbidden"
            name = self.config.api_key_env
            fix = f"export a valid key in {name}" if name else "set it to the name of a variable that holds a key"
            return InputError(f"{section}.api_key_env: {name!r} → {code}: {url} refuses the key ({status}); {fix}")
        if status == 404:
            return InputError(f"{section}.model: {self.config.model!r} → no_model: {url} answers 404; {self._models()}")
        if status == 429:
            return Fault("rate_limited", f"{url} answers 429 ({tried}): {said}")
        if is_transient_status(status) or status == 409:
            return Fault("server_error", f"{url} answers {status} ({tried}): {said}")
        if error.code == "content_filter":
            return Fault("content_filter", f"{url} answers {status}: {said}")
        if schema and status in (400, 422):
            return SchemaRefused(said)
        return InputError(f"{section}: bad_request: {url} answers {status}: {said}; see {self.settings}")

    def _no_answer(self, error: NoAnswer, tried: str) -> Exception:
        url, section, said = self.config.base_url, self.config.section, one_line(mask(error.body), 120)
        if error.status is not None:
            code = "rate_limited" if error.status == 429 else "server_error"
            return Fault(code, f"{url} answers 200 with an error {error.status} in the body ({tried}): {said}")
        if error.is_empty:
            return Fault("content_filter", f"{url} answers without a choice: {said}")
        return InputError(
            f"{section}.base_url: {url!r} → its answer is not {self.answers}: {said!r}; give the address of an "
            "OpenAI-compatible endpoint, which usually ends in /v1"
        )

    def _models(self) -> str:
        """Advice for a model that the endpoint does not have, from its own list of models."""
        try:
            names = [model.id for model in self.api.models.list()]
        except openai.OpenAIError:
            return "name a model that it serves, and check that base_url ends in /v1"
        near = difflib.get_close_matches(self.config.model, names, n=3, cutoff=0.4) or names[:5]
        return f"it serves {', '.join(one_line(name, 60) for name in near)}" if near else "it serves no models"


def _arguments(request: dict[str, Any]) -> dict[str, Any]:
    """The arguments for openai's client. Fields that it may not know are passed in `extra_body`."""
    own = {"messages", "model", "response_format", "temperature"}
    known = {name: value for name, value in request.items() if name in own}
    return known | {"extra_body": {name: value for name, value in request.items() if name not in own}}


class NoAnswer(Exception):
    """A response with status 200 whose body is not an answer: an error, a gateway's page, another service."""

    def __init__(self, body: str) -> None:
        super().__init__("no answer")
        self.body = body
        self.status = _status_within(body)
        """The status of a transient error, if the body contains one."""
        self.is_empty = _has_no_choice(body)
        """A chat completion with an empty list of choices."""


_PASSES = {"rate_limit_exceeded": 429, "rate_limited": 429, "resource_exhausted": 429, "too_many_requests": 429}
_PASSES |= {"overloaded": 503, "overloaded_error": 503, "unavailable": 503, "server_error": 500, "internal_error": 500}
_PAGE = re.compile(r"<(?:title|h1)>[^<]*\b(429|5\d\d)\b", re.IGNORECASE)


def _status_within(body: str) -> int | None:
    """429 or 5xx if a JSON body says so in a field, or an HTML page in its title. Else None."""
    try:
        data = parse_json(body)
    except ValueError:
        page = _PAGE.search(body)
        return int(page[1]) if page else None
    error = data.get("error") if isinstance(data, dict) else None
    for fields in (error, data):
        for name in ("code", "status", "status_code", "type"):
            value = fields.get(name) if isinstance(fields, dict) else None
            said = str(value).casefold()
            number = _PASSES.get(said, int(said) if said.isdecimal() and len(said) == 3 else 0)
            if number == 429 or 500 <= number < 600:
                return number
    return None


def _has_no_choice(body: str) -> bool:
    try:
        data = parse_json(body)
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("choices") == [] and "error" not in data


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later, after a wait of at most `LONGEST_WAIT`."""
    if isinstance(error, NoAnswer):
        return error.status is not None
    if not isinstance(error, openai.APIStatusError):
        return isinstance(error, openai.APIConnectionError)
    if error.code in OUT_OF_MONEY:
        return False
    # 409: the endpoint could not get a lock in time; openai's own client retries it too
    return (is_transient_status(error.status_code) or error.status_code == 409) and (
        (_asked_wait(error) or 0) <= LONGEST_WAIT
    )


class _Pause(wait_base):
    """Pauses for the time in Retry-After or slightly longer. Without that header, uses the common backoff."""

    def __init__(self, told: Callable[[float], None]) -> None:
        """`told`: called with the seconds of each pause."""
        self._backoff = backoff()
        self._told = told

    def __call__(self, retry_state: RetryCallState) -> float:
        assert retry_state.outcome is not None
        asked = _asked_wait(retry_state.outcome.exception())
        seconds = self._backoff(retry_state) if asked is None else asked * random.uniform(1.0, 1.1)
        self._told(seconds)
        return seconds


def _asked_wait(error: BaseException | None) -> float | None:
    """The seconds that a response asks to wait, None if it does not."""
    return _retry_after(error.response.headers.get("retry-after")) if isinstance(error, openai.APIStatusError) else None


def _retry_after(value: str | None) -> float | None:
    """The seconds in a Retry-After header, or until its date. None if there is no header or no time left to wait."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if 0 < seconds < math.inf else None


def _message(error: openai.APIError) -> str:
    """The endpoint's own error message."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return str(body or error.message)
