"""A model hub on loopback that takes uploads: login, repositories, LFS and commits, with faults. Files can be read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LFS = (".safetensors", ".parquet", ".tar", ".png")
"""Large files, which are sent by themselves."""
LICENCES = ("apache-2.0", "mit", "creativeml-openrail-m", "other")


@dataclass
class Stored:
    """A repository."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[list[str]] = field(default_factory=list)
    """The files of each commit."""


@dataclass
class Fault:
    """What happens to requests that contain `where`, as `METHOD /path`."""

    where: str
    how: int | str
    """An HTTP status; `cut`: the connection breaks; `lost`: the request is done, but its answer is lost."""
    times: int = 1
    after: int = 0
    """Requests of this kind that go well before."""
    says: str = ""
    """The reason that is given with a status."""


class UploadHub:
    """What the hub has, and what it was asked."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {"hf_writes_all_of_it": "write", "hf_only_ever_reads": "read"}
        self.writers = {"me"}
        """Owners to whose repositories tokens may write."""
        self.repositories: dict[str, Stored] = {}
        """`models/owner/name` or `datasets/owner/name`."""
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.url = ""

    def sent(self) -> list[str]:
        """The requests that change something, since the last call."""
        found = [word for word in self.asked if word.startswith(("PUT", "POST /api/repos/")) or "/commit/" in word]
        self.asked.clear()
        return found


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """A running hub; its address is `HF_ENDPOINT`."""
    state = UploadHub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def reach(hub: UploadHub, patch: pytest.MonkeyPatch) -> None:
    """Make the hub's client, which may be imported already, ask this hub and retry without pauses."""
    from huggingface_hub import HfFileSystem, constants
    from huggingface_hub.utils import _http

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(_http.time, "sleep", lambda seconds: None)
    HfFileSystem.clear_instance_cache()


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {unquote(self.path)}"
        self.hub.asked.append(asked)
        fault = next((fault for fault in self.hub.faults if fault.where in asked and fault.times > 0), None)
        if fault is not None and fault.after > 0:
            fault.after -= 1
        elif fault is not None:
            fault.times -= 1
            if isinstance(fault.how, int):
                return self._send(fault.how, {"X-Error-Message": fault.says} if fault.says else None)
            if fault.how == "lost":
                self._send = lambda *_: None  # type: ignore[method-assign, assignment]
                self._answer(body)
            self.close_connection = True
            return None
        return self._answer(body)

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, body: bytes) -> None:
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        if words[0] == "lfs":
            assert hashlib.sha256(body).hexdigest() == words[1]
            self.hub.blobs[words[1]] = body
            return self._send(200)
        role = self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if role is None:
            return self._send(401)
        if words[0] != "api":
            at = next(i for i, word in enumerate(words) if word == "resolve" or word.endswith(".git"))
            kind, name = ("datasets", words[1 : at + 1]) if words[0] == "datasets" else ("models", words[: at + 1])
            if words[at] != "resolve":
                return self._batch(json.loads(body))
            stored = self.hub.repositories.get(f"{kind}/{'/'.join(name[:-1])}")
            content = None if stored is None else stored.files.get("/".join(words[at + 2 :]))
            return self._send(404) if stored is None or content is None else self._file(stored, content)
        if words[1] == "whoami-v2":
            return self._json({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})
        if words[1] == "validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            problems = [] if head.get("license", "other") in LICENCES else [{"message": "license must be one of …"}]
            return self._json({"errors": problems, "warnings": []}, 400 if problems else 200)
        if words[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            if asked["organization"] not in self.hub.writers:
                return self._send(403)
            if name in self.hub.repositories:
                return self._json({"url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repositories[name] = Stored(asked.get("visibility") == "private")
            return self._json({"url": f"{self.hub.url}/{name.removeprefix('models/')}"})
        stored = self.hub.repositories.get("/".join(words[1:4]))
        if stored is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        return self._repository(stored, words[2], words[4:], body)

    def _repository(self, stored: Stored, owner: str, asked: list[str], body: bytes) -> None:
        if asked[:1] in (["auth-check"], ["preupload"], ["commit"]) and owner not in self.hub.writers:
            return self._send(403)
        if asked == ["auth-check", "write"]:
            return self._json({})
        if asked[:1] == ["preupload"]:
            files = [
                {
                    "path": (path := str(file["path"])),
                    "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": None if path not in stored.files else _oid(path, stored.files[path]),
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if asked[:1] == ["tree"]:
            below = "".join(f"{word}/" for word in asked[2:])
            return self._json([_entry(name, data) for name, data in stored.files.items() if name.startswith(below)])
        if asked[:1] == ["paths-info"]:
            fields = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
            wanted = fields["paths"]
            found = [_entry(name, data) for name, data in stored.files.items() if name in wanted]
            folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in stored.files)]
            return self._json([*found, *({"type": "directory", "path": path, "oid": "0" * 40} for path in folders)])
        if asked[:1] == ["commit"]:
            written = []
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if value.get("parentCommit", _sha(stored)) != _sha(stored):
                    return self._send(412)
                if entry["key"] == "file":
                    stored.files[value["path"]] = base64.b64decode(value["content"])
                if entry["key"] == "lfsFile":
                    stored.files[value["path"]] = self.hub.blobs[value["oid"]]
                if entry["key"] != "header":
                    written.append(value["path"])
            stored.commits.append(written)
            return self._json({"commitUrl": f"{self.hub.url}/x/y/commit/{_sha(stored)}", "commitOid": _sha(stored)})
        siblings = []
        for name, data in stored.files.items():
            lfs = (
                {"lfs": {"sha256": _oid(name, data), "size": len(data), "pointerSize": 1}} if name.endswith(LFS) else {}
            )
            siblings.append({"rfilename": name, "size": len(data), "blobId": _oid("", data), **lfs})
        return self._json({"id": "x/y", "sha": _sha(stored), "private": stored.private, "siblings": siblings})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for wanted in asked["objects"]:
            known = wanted["oid"] in self.hub.blobs
            upload = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
            objects.append({**wanted, **upload})
        self._json({"transfer": "basic", "objects": objects})

    def _file(self, stored: Stored, content: bytes) -> None:
        facts = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": _sha(stored)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None:
            return self._send(200, facts, content)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        facts["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, facts, content[first : last + 1])

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _sha(stored: Stored) -> str:
    return hashlib.sha1(repr(sorted(stored.files.items())).encode()).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """As it is listed in a tree."""
    lfs = {"lfs": {"oid": _oid(name, data), "size": len(data), "pointerSize": 1}} if name.endswith(LFS) else {}
    return {"type": "file", "path": name, "size": len(data), "oid": _oid("", data), **lfs}


def _oid(path: str, data: bytes) -> str:
    if path.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
