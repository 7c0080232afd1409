"""Proxy settings in the environment: loopback addresses bypass the proxy, and invalid values are reported."""

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
"""0.0.0.0 is not an address to connect to, but servers print it as their own, and connecting to it works."""

VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Also read in upper case; HTTP clients prefer lower case."""

SOCKS = ("socks5", "socks5h")

_HOST = re.compile(r"[^:\[\]]+(:\d+)?")
"""An entry of `no_proxy`, other than IPv6, that all clients can parse, even if not all of them match it."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address, which other machines cannot reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def open_url(url: str | urllib.request.Request, timeout: float) -> Any:
    """`urllib.request.urlopen`, but without a proxy for loopback URLs.

    `no_proxy` alone cannot do this: urllib and httpx do not agree on how to write `[::1]`.
    """
    address = url if isinstance(url, str) else url.full_url
    if is_loopback(urlsplit(address).hostname or ""):
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)
    return urllib.request.urlopen(url, timeout=timeout)


def spare_loopback(*urls: str | None) -> None:
    """Add the loopback addresses to `no_proxy`, for this process and its children.

    Otherwise requests to our own Prefect server, or to a language model on this machine, would go to the proxy. The
    other entries are rewritten in a form that all HTTP clients can parse.

    Args:
        urls: URLs whose hosts are also added if they are other loopback addresses, such as 127.0.1.1.
    """
    hosts = [host for entry in _no_proxy() if (host := _readable(entry)) is not None]
    if "*" in hosts:
        hosts = ["*"]  # urllib does not support it in a list
    else:
        hosts += [host for host in (*LOOPBACK, *filter(None, map(_loopback_host, urls))) if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(hosts))


def _no_proxy() -> list[str]:
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [host for part in re.split(r"[,;\s]+", given) if (host := part.strip("\"'"))]


def _readable(entry: str) -> str | None:
    """An entry of `no_proxy` in a form that all clients can parse: httpx fails on `[::1]` and `::1/128`.

    Returns:
        None if some client fails on every form of it, for example on a name that is not ASCII.
    """
    entry = entry.partition("://")[2].rstrip("/") or entry
    inner = entry.partition("]")[0].removeprefix("[").partition("/")[0].partition("%")[0]
    try:
        return str(ipaddress.IPv6Address(inner))
    except ValueError:
        pass
    return entry if entry.isascii() and "xn--" not in entry.lower() and _HOST.fullmatch(entry) else None


def _loopback_host(url: str | None) -> str | None:
    """The host of a URL if it is a loopback address, else None."""
    try:
        host = urlsplit(url or "").hostname or ""
    except ValueError:  # the code that uses the URL reports it
        return None
    return host if is_loopback(host) else None


def check_proxies() -> None:
    """Check that HTTP clients can use the proxy variables. With a bad value, some fail with a traceback when created.

    Raises:
        InputError: a value is not a proxy URL, the package for its scheme is missing, or an entry of `no_proxy` is not
            a host. The message does not show a proxy's URL, which may contain a password.
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
