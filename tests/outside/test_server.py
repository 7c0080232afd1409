"""PREFECT_API_URL as people write it, and what may answer there: Prefect's API is used, all else is one line."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from bootpig.flows.api import ServerError, configured_api, require_answer
from bootpig.flows.cli.main import main


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as `table` says: path → (status, type, body); a body of None wants this `login`."""

    table: ClassVar[dict[str, tuple[int, str, bytes | None]]] = {}
    usual: ClassVar[tuple[int, str, bytes | None]] = (404, "text/html", b"<html>not found</html>")
    login = "Basic " + base64.b64encode(b"me:secret-of-mine").decode()

    def do_GET(self) -> None:
        status, kind, body = self.table.get(self.path, self.usual)
        if body is None:
            status = 200 if self.headers.get("Authorization") == self.login else 401
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        pass


HEALTHY = (200, "application/json", b"true")
PAGE = (200, "text/html", b"<html>hello</html>")

Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server. Returns its address, without a path."""
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(table: dict[str, tuple[int, str, bytes | None]], usual: tuple[int, str, bytes | None] = PAGE) -> str:
        kind = type("Pretend", (Answers,), {"table": table, "usual": usual})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("usual", [PAGE, Answers.usual])
@pytest.mark.parametrize("path", ["", "/", "/dashboard", "/runs/flow-run/x", "/api/v2", "/api/admin"])
def test_the_address_of_the_pages_names_that_of_the_api(
    serve: Serve, path: str, usual: tuple[int, str, bytes | None]
) -> None:
    base = serve({"/api/health": HEALTHY}, usual)
    require_answer(f"{base}/api")
    with pytest.raises(ServerError, match=rf"^PREFECT_API_URL: .* give that of its API, {base}/api$"):
        require_answer(f"{base}{path}".rstrip("/"))


OTHERS = {
    "pages": PAGE,
    "nothing": Answers.usual,
    "JSON of another server": (200, "application/json", b'{"status": "ok"}'),
    "an empty answer": (200, "application/json", b""),
    "a fault": (500, "text/plain", b"oh"),
    "not allowed": (405, "text/plain", b""),
}


@pytest.mark.parametrize("path", ["", "/api", "/v1"])
@pytest.mark.parametrize("name", list(OTHERS))
def test_another_server_is_not_the_api(serve: Serve, name: str, path: str) -> None:
    base = serve({}, OTHERS[name])
    with pytest.raises(ServerError, match="is not Prefect's API; give its address, which ends in /api") as told:
        require_answer(base + path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_without_a_server_behind_it(serve: Serve, status: int) -> None:
    with pytest.raises(ServerError, match=rf"no Prefect server answers there \({status} "):
        require_answer(serve({}, (status, "text/html", b"")) + "/api")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:4200/api", "localhost", "//x/api", "http://", "ftp://x/api", "http://[::1/api", "http://x:port"],
)
def test_what_is_no_address_says_how_to_write_one(address: str) -> None:
    with pytest.raises(ServerError, match=r"write it as http://127.0.0.1:4200/api$"):
        require_answer(address)


@pytest.mark.parametrize("written", ["{}", "{}/", " {} ", "'{}'", '"{}/"\n'])
def test_quotes_blanks_and_slashes_around_the_address_are_no_part_of_it(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", written.format("http://x:4200/api"))
    assert configured_api() == "http://x:4200/api"


def test_a_login_that_the_server_wants_is_named_and_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    api = serve({"/api/health": HEALTHY, "/api/admin/version": (200, "application/json", None)}) + "/api"
    with pytest.raises(ServerError, match=r"^PREFECT_API_AUTH_STRING: not set → .* refuses it \(401\)"):
        require_answer(api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:wrong-secret")
    with pytest.raises(ServerError, match=r"^PREFECT_API_AUTH_STRING: \(not shown\) → ") as told:
        require_answer(api)
    assert "wrong" not in str(told.value)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret-of-mine")
    require_answer(api)


@pytest.mark.parametrize("command", [["setup-server"], ["run", "toy", "--until", "caption"]])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
def test_every_command_that_needs_the_api_says_so_in_one_line(
    command: list[str],
    host: str,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = serve({"/api/health": HEALTHY})
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        # as a proxy, it answers with a page whatever it is asked for
        monkeypatch.setenv(name, base if name.lower() == "http_proxy" else "")
    monkeypatch.chdir(tmp_path)
    address = base.replace("127.0.0.1", host)
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("PREFECT_API_URL: ") and said.count("\n") == 1
    # it does not listen on IPv6
    assert ("Connection refused" if host == "[::1]" else f"{address}/api") in said


def test_a_damaged_profile_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    profiles = tmp_path / "profiles.toml"
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    for text in (b"\xff\xfe", b"active = 3", json.dumps({"active": "a"}).encode(), b'active = "a"\n[profiles]\na = 3'):
        profiles.write_bytes(text)
        assert configured_api() is None
