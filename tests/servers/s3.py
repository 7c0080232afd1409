"""An S3 server on loopback that can inject faults: moto's server behind a fault-injecting layer.

`python -m tests.servers.s3 --port 9000 --faults 0.1` runs it alone.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, READER, SECRET = "AKIABOOTPIGTESTS0000", "AKIABOOTPIGREADER000", "loopback/secret+of+the+tests+4711"
"""`READER` may read and list only."""

FAULTS = ("error", "slow_down", "late", "cut", "unsaid", "kept")
"""500 · 503 · an answer that is late · one that ends in its middle · a request that is done and yet answered by 500 ·
a removal of many that is answered by 200 and by which nothing goes. What does not suit a request is a 500."""

_REFUSALS = {
    "error": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "unknown": ("403 Forbidden", "InvalidAccessKeyId", "The AWS Access Key Id does not exist in our records."),
    "no_checksums": (
        "501 Not Implemented",
        "NotImplemented",
        "A header you provided is not implemented.",
    ),
    "other_sum": ("400 Bad Request", "XAmzContentSHA256Mismatch", "The provided sum does not match what was computed."),
    "denied": ("403 Forbidden", "AccessDenied", "Access Denied"),
}

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A request and its response status."""

    method: str
    path: str
    query: str
    fault: str

    @property
    def lists(self) -> bool:
        return "list-type=2" in self.query


class Faults:
    """WSGI middleware that makes a seeded random fraction of the calls fail, and checks keys."""

    def __init__(self, application: Any, seed: int = 0) -> None:
        self.application = application
        self.rate = 0.0
        self.kinds: tuple[str, ...] = FAULTS
        self.in_a_row: int | None = None
        """The most faults that one request meets before it succeeds; None: as the dice fall."""
        self.late_seconds = 0.3
        self.checksums = ""
        """`no_checksums` or `other_sum`: how requests with a checksum are refused."""
        self.calls: list[Call] = []
        self._dice = random.Random(seed)
        self._rows: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def _draw(self, *request: str) -> str:
        with self._lock:
            row = self._rows.get(request, 0)
            fault = self._dice.choice(self.kinds) if self._dice.random() < self.rate else ""
            if self.in_a_row is not None and row >= self.in_a_row:
                fault = ""
            self._rows[request] = row + 1 if fault else 0
            return fault

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        fault = self._draw(method, environ["PATH_INFO"], environ["QUERY_STRING"])
        key = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if key is None or key[1] not in (KEY, READER):
            fault = "unknown"
        elif key[1] == READER and method not in ("GET", "HEAD"):
            fault = "denied"
        removal = method == "POST" and environ["QUERY_STRING"] == "delete"
        if self.checksums and any(name.startswith(("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_TRAILER")) for name in environ):
            fault = self.checksums
        if (fault == "cut" and method != "GET") or (fault == "kept" and not removal):
            fault = "error"
        self.calls.append(Call(method, environ["PATH_INFO"], environ["QUERY_STRING"], fault))
        body = self._drain(environ)
        if fault in _REFUSALS:
            return self._refuse(fault, method, start_response)
        if fault == "kept":
            return self._keep(body, start_response)
        if fault == "late":
            time.sleep(self.late_seconds)
        if fault == "unsaid":
            list(self.application({**environ, "wsgi.input": io.BytesIO(body)}, lambda *_: None))
            return self._refuse("error", method, start_response)
        answer: Iterable[bytes] = self.application({**environ, "wsgi.input": io.BytesIO(body)}, start_response)
        if fault == "cut":
            whole = b"".join(answer)
            return [whole[: len(whole) // 2]]
        return answer

    @staticmethod
    def _drain(environ: dict[str, Any]) -> bytes:
        """A server that answers before it has read the request would break the connection instead."""
        body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return body

    @staticmethod
    def _keep(body: bytes, start_response: Answer) -> list[bytes]:
        failed = "".join(
            f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>Please try again.</Message></Error>"
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode())
        )
        text = f'<?xml version="1.0"?><DeleteResult>{failed}</DeleteResult>'.encode()
        start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text]

    @staticmethod
    def _refuse(fault: str, method: str, start_response: Answer) -> list[bytes]:
        status, code, message = _REFUSALS[fault]
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [] if method == "HEAD" else [text]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def s3_server(port: int = 0) -> Iterator[tuple[str, Faults]]:
    """Serve in a thread. Yields the address and the fault layer, which starts without faults."""
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, faults, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_bucket(bucket: str = "data") -> Iterator[Faults]:
    """A server with one bucket, and an environment that reaches it. File systems made before are forgotten."""
    import s3fs

    with s3_server() as (address, faults), tempfile.TemporaryDirectory() as cache:
        environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "BOOTPIG_CACHE": cache,
        }
        with mock.patch.dict(os.environ, environment):
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(bucket)
            try:
                yield faults
            finally:
                # moto's buckets belong to the process, not to the server
                get_backend("s3").reset()
        s3fs.S3FileSystem.clear_instance_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--faults", type=float, default=0.0, help="share of the calls that go wrong")
    asked = parser.parse_args()
    with s3_server(asked.port) as (address, faults):
        faults.rate = asked.faults
        print(f"{address}  AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
