"""Proxy settings of the environment: loopback never goes through a proxy, and unusable values are named."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from bootpig.stages.engine.contract import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
"""The last is no address to connect to, but servers print it as theirs, and it reaches them."""

VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Each also in capitals; HTTP clients prefer the small ones."""

SOCKS = ("socks5", "socks5h")

_HOST = re.compile(r"[^:\[\]]+(:\d+)?")
"""An entry of `no_proxy` that is not IPv6 and that clients read without failing, whether or not they match it."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address leads to this machine itself, so that another one cannot use it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def open_url(url: str | urllib.request.Request, timeout: float) -> Any:
    """`urllib.request.urlopen`, but never through a proxy where the URL is of loopback; `no_proxy` has no word for
    `[::1]` that urllib and httpx both know."""
    address = url if isinstance(url, str) else url.full_url
    if is_loopback(urlsplit(address).hostname or ""):
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)
    return urllib.request.urlopen(url, timeout=timeout)


def spare_loopback(*urls: str | None) -> None:
    """Add loopback to `no_proxy`, for this process and those it starts: our own Prefect server, or a language model on
    this machine, would be asked for through the proxy. What else is in it is written as all HTTP clients read it.

    Args:
        urls: whose hosts are added too where they are loopback under another name, such as 127.0.1.1.
    """
    hosts = [host for entry in _no_proxy() if (host := _readable(entry)) is not None]
    if "*" in hosts:
        hosts = ["*"]  # urllib does not know it within a list
    else:
        hosts += [host for host in (*LOOPBACK, *filter(None, map(_loopback_host, urls))) if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(hosts))


def _no_proxy() -> list[str]:
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [host for part in re.split(r"[,;\s]+", given) if (host := part.strip("\"'"))]


def _readable(entry: str) -> str | None:
    """An entry of `no_proxy` as all clients read it: httpx fails at `[::1]` and `::1/128`. None: some clients fail
    at it however it is written, as at a name that is not ASCII."""
    entry = entry.partition("://")[2].rstrip("/") or entry
    inner = entry.partition("]")[0].removeprefix("[").partition("/")[0].partition("%")[0]
    try:
        return str(ipaddress.IPv6Address(inner))
    except ValueError:
        pass
    return entry if entry.isascii() and "xn--" not in entry.lower() and _HOST.fullmatch(entry) else None


def _loopback_host(url: str | None) -> str | None:
    """The host of a URL if it is one of loopback."""
    try:
        host = urlsplit(url or "").hostname or ""
    except ValueError:  # whoever uses the URL says so
        return None
    return host if is_loopback(host) else None


def check_proxies() -> None:
    """See that HTTP clients can use the proxy variables; several fail with a traceback while they are made.

    Raises:
        InputError: a value is no proxy's URL, or of a kind whose package is missing, or an entry of `no_proxy` is no
            host. A proxy's URL is never shown: it may hold a password.
    """
    problems = []
    for name in (*VARIABLES, *map(str.upper, VARIABLES)):
        value = os.environ.get(name, "")
        if not value:
            continue
        problem = _problem(value)
        if problem:
            problems.append(f"{name}: (not shown) → {problem}; give http://host:port, or unset it")
    if wrong := [entry for entry in _no_proxy() if _readable(entry) is None]:
        problems.append(f"no_proxy: {wrong[0][:60]!r} → is no name or address of a host; give host,host,…, or unset it")
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
    if parts.scheme == "socks":
        return "is of an unknown kind, such as desktops write (socks5:// is known)"
    if parts.scheme in SOCKS:
        missing = importlib.util.find_spec("socksio") is None
        return "is a SOCKS proxy, whose package is missing (pip install 'httpx[socks]')" if missing else ""
    if parts.scheme not in ("http", "https"):
        return "is of an unknown kind"
    return ""
