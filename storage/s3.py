"""S3 through s3fs: how it is opened, so that a call is one request where it can be, and none waits without end."""

from __future__ import annotations

from typing import Any

import fsspec

from bootpig.storage.retry import ATTEMPTS

PROTOCOLS = ("s3", "s3a")


def options() -> dict[str, Any]:
    """What the file system is opened with, over what fsspec's own configuration says."""
    given = {key: value for name in PROTOCOLS for key, value in fsspec.config.conf.get(name, {}).items()}
    retries = {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}}
    return {"use_listings_cache": False, "config_kwargs": {**retries, **given.get("config_kwargs", {})}}


def prepare(fs: Any) -> None:
    """Set up a file system that fsspec has opened, or found open."""
    fs.retries = 1  # botocore tries again by status and with jitter; s3fs would by the text of messages
    if fs.session is None:
        from aiobotocore.session import AioSession

        session = AioSession(**fs.kwargs)
        session.register("before-call.s3", _send_the_body)
        fs.session = session


def object_size(fs: Any, path: str) -> int:
    """The size of an object in bytes. Raises FileNotFoundError; `fs.info` would list for a folder of its name first."""
    bucket, key, _ = fs.split_path(path)
    return int(fs.call_s3("head_object", Bucket=bucket, Key=key)["ContentLength"])


def _send_the_body(params: dict[str, Any], **_: Any) -> None:
    """Don't wait for `100 Continue` before the body: aiohttp starts no clock for it, so that a write to a server that
    says nothing would hang for good, and forgets the clock of the answer where a second one comes."""
    params["headers"].pop("Expect", None)
