"""Configures s3fs: one request per call where possible, bounded retries, and no request that can hang forever."""

from __future__ import annotations

from typing import Any

import fsspec

from bootpig.storage.retry import ATTEMPTS

PROTOCOLS = ("s3", "s3a")


def options() -> dict[str, Any]:
    """Options to open the file system with, merged with the user's fsspec configuration."""
    given = {key: value for name in PROTOCOLS for key, value in fsspec.config.conf.get(name, {}).items()}
    retries = {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}}
    return {"use_listings_cache": False, "config_kwargs": {**retries, **given.get("config_kwargs", {})}}


def prepare(fs: Any) -> None:
    """Set up a file system that fsspec has opened or taken from its cache."""
    fs.retries = 1  # botocore retries by status code and with jitter; s3fs would match message text
    if fs.session is None:
        from aiobotocore.session import AioSession

        session = AioSession(**fs.kwargs)
        session.register("before-call.s3", _send_the_body)
        fs.session = session


def object_size(fs: Any, path: str) -> int:
    """The size of an object in bytes, in one request (`fs.info` may also list). Raises FileNotFoundError."""
    bucket, key, _ = fs.split_path(path)
    return int(fs.call_s3("head_object", Bucket=bucket, Key=key)["ContentLength"])


def _send_the_body(params: dict[str, Any], **_: Any) -> None:
    """Send the body without waiting for `100 Continue`. aiohttp applies no timeout to that wait, so a write to a
    server that does not respond would hang forever, and it drops the response timeout when a second one arrives."""
    params["headers"].pop("Expect", None)
