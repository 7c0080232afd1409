"""Proxy settings of the environment: loopback never goes through a proxy, and unusable values are named."""

from __future__ import annotations

import importlib.util
import os
from urllib.parse import urlsplit

from bootpig.stages.engine.contract import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Each also in capitals; HTTP clients prefer the small ones."""

SOCKS = ("socks5", "socks5h", "socks4", "socks4a")


def spare_loopback() -> None:
    """Add loopback to `no_proxy`, for this process and those it starts: our own Prefect server, or a language model on
    this machine, would be asked for through the proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for part in given.replace(";", ",").split(",") if (host := part.strip().strip("\"'"))]
    if "*" in hosts:
        return
    hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def check_proxies() -> None:
    """See that HTTP clients can use the proxy variables; several fail with a traceback while they are made.

    Raises:
        InputError: a value is no proxy's URL, or of a kind whose package is missing. It is never shown: it may hold a
            password.
    """
    problems = []
    for name in (*VARIABLES, *map(str.upper, VARIABLES)):
        value = os.environ.get(name, "")
        if not value:
            continue
        problem = _problem(value)
        if problem:
            problems.append(f"{name}: (not shown) → {problem}; give http://host:port, or unset it")
    if problems:
        raise InputError("\n".join(problems))


def _problem(value: str) -> str:
    if value != value.strip() or any(character in value for character in "\"' \t\r\n"):
        return "has white space or quotes in it"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is no URL ({error})" if "@" not in value else "is no URL"
    if not host:
        return "names no host"
    if parts.scheme in SOCKS:
        missing = importlib.util.find_spec("socksio") is None
        return "is a SOCKS proxy, whose package is missing (pip install 'httpx[socks]')" if missing else ""
    if parts.scheme not in ("http", "https"):
        return "is of an unknown kind"
    return ""
