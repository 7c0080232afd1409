"""A model hub on loopback, with the part of the hub's API needed to find and download models, and plain files."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A model repository with a single commit, a hash of its files."""

    files: dict[str, bytes] = field(default_factory=dict)
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    fault: int = 0
    """An HTTP status that every question about it gets."""
    silent: bool = False
    """Accepts questions and never answers."""

    @classmethod
    def of(cls, folder: Path, **options: object) -> Repository:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return cls(files, **options)  # type: ignore[arg-type]

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub:
    """The server's repositories and files, and the requests it got."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.files: dict[str, bytes] = {}
        """Path to content of files outside any repository."""
        self.cut: set[str] = set()
        """Paths of files whose transfer breaks off in the middle."""
        self.asked: list[str] = []
        """`METHOD /path` of every request."""
        self.url = ""
        self.closing = threading.Event()


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub; its address is `HF_ENDPOINT`."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        path = "/".join(words)
        if path in self.hub.files:
            return self._file(path, self.hub.files[path])
        if words[:2] == ["api", "models"]:
            return self._api("/".join(words[2:4]), words[4:])
        if words[2:3] == ["resolve"]:
            repository = self._repository("/".join(words[:2]))
            if repository is None:
                return None
            if repository.gated:
                return self._refuse(403, "GatedRepo")
            content = repository.files.get("/".join(words[4:]))
            if content is None:
                return self._refuse(404, "EntryNotFound")
            return self._file(path, content, repository.commit)
        return self._refuse(404, "")

    do_HEAD = do_GET

    def _api(self, name: str, question: list[str]) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        if question == ["auth-check"]:
            return self._refuse(403, "GatedRepo") if repository.gated else self._json({})
        revision = "/".join(question[1:2])
        if revision not in (*repository.branches, repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if question[0] == "tree":
            return self._json(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in repository.files.items()
                ]
            )
        siblings = [{"rfilename": file} for file in sorted(repository.files)]
        gated = "manual" if repository.gated else False
        return self._json({"id": name, "sha": repository.commit, "gated": gated, "siblings": siblings})

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")  # what the hub says without a login, so as not to tell of private ones
        elif repository.silent:
            self.hub.closing.wait(60)
            self.close_connection = True
        elif repository.fault:
            self._refuse(repository.fault, "")
        else:
            return repository
        return None

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, content: bytes, commit: str = "") -> None:
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit}
        if path in self.hub.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self._send(200, content, headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@functools.lru_cache(maxsize=32)
def _digest(content: bytes) -> str:
    """Computed once: a checkpoint of 375 MB takes longer than some clients wait on a busy machine."""
    return hashlib.sha256(content).hexdigest()
