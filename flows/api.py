"""The configured Prefect API: its address, and checks that it answers and accepts our credentials."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import ssl
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from bootpig.flows.proxies import open_url
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import masked


class ServerError(RuntimeError):
    """No usable Prefect server. The message is one line."""


def configured_api() -> str | None:
    """The API address that Prefect would use, without surrounding quotes, spaces and slashes."""
    return (_setting("PREFECT_API_URL") or "").strip(" \t\r\n\"'").rstrip("/") or None


def _setting(name: str) -> str | None:
    """A Prefect setting, from the environment or the active profile, read without importing Prefect."""
    if value := os.environ.get(name):
        return value
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or prefect_home() / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        value = profiles["profiles"][os.environ.get("PREFECT_PROFILE") or profiles["active"]][name]
    except (OSError, ValueError, KeyError, TypeError):  # no profile, or it cannot be parsed
        return None
    return str(value)


def prefect_home() -> Path:
    """The folder in which Prefect keeps its files.

    Raises:
        ServerError: PREFECT_HOME is in the home folder of a user that does not exist.
    """
    try:
        return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    except RuntimeError:
        given = os.environ.get("PREFECT_HOME")
        raise ServerError(f"PREFECT_HOME: {given!r} → there is no such home folder; give a whole path") from None


def require_answer(address: str) -> None:
    """Check that Prefect's API answers at the address and accepts our credentials.

    Raises:
        ServerError: nothing answers, what answers is not Prefect's API, or it refuses the credentials.
    """
    shown = f"PREFECT_API_URL: {masked(address)!r}"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ServerError(f"{shown} → is no address of a server; write it as http://127.0.0.1:4200/api")
    try:
        found = _is_api(address)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # Prefect's client has its own TLS settings
            return
        raise ServerError(
            f"{shown} → no Prefect server answers there ({one_line(str(reason), 200)}); start it (prefect server "
            "start), or unset the variable so that a run starts its own server"
        ) from None
    if not found:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            base = f"{parts.scheme}://{parts.netloc}"
            if _is_api(f"{base}/api"):
                raise ServerError(
                    f"{shown} → is the address of Prefect's pages; give that of its API, {masked(base)}/api"
                )
        raise ServerError(
            f"{shown} → what answers there is not Prefect's API; give its address, which ends in /api, or unset the "
            "variable so that a run starts its own server"
        )
    _require_login(address)


def _is_api(address: str) -> bool:
    """Whether `<address>/health` answers like Prefect's API. Raises urllib's errors if there is no answer."""
    try:
        with open_url(f"{address}/health", timeout=30) as answer:
            return bool(parse_json(answer.read(100)) is True)
    except urllib.error.HTTPError as error:
        if error.code in (502, 503, 504):  # a proxy in front of a server that is down
            raise OSError(f"{error.code} {error.reason}") from None
        # Prefect Cloud answers differently; a gateway may require credentials that only Prefect's client has
        return error.code in (401, 403, 429) or (urlsplit(address).hostname or "").endswith(".prefect.cloud")
    except ValueError:
        return False


def _require_login(address: str) -> None:
    headers = {}
    if login := _setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := _setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        open_url(urllib.request.Request(f"{address}/admin/version", headers=headers), timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code == 401 and "PREFECT_CLIENT_CUSTOM_HEADERS" not in os.environ:
            name = "PREFECT_API_KEY" if not login and headers else "PREFECT_API_AUTH_STRING"
            raise ServerError(
                f"{name}: {'(not shown)' if headers else 'not set'} → {masked(address)} refuses it (401); set it to "
                "what the server was started with"
            ) from None
    except (OSError, ValueError, http.client.HTTPException):
        pass  # it answered a moment ago; Prefect's client retries
