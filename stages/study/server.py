"""The server of a study: one page, its pictures, and votes. It shows nothing without the link's key.

A judge can only ask for pairs that were handed to them, and can only send a name and votes for those. Names in
addresses are random, pictures are encoded alike, and no header tells one picture from another.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bootpig.stages.study.ballot import Ballot, Side
from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import Judge, NameRefused, NotSaved, Votes
from bootpig.storage.jsonio import parse_json

PAGE = Path(__file__).parent / "page"
FILES = {"/": ("index.html", "text/html"), "/study.css": ("study.css", "text/css")}
FILES |= {"/study.js": ("study.js", "text/javascript")}
"""Address → file of the page, and its type."""

MOST_BYTES = 4096
"""Of a request's body."""

MOST_BALLOTS = 64
"""Ballots that are kept in memory. Others are made again when they are needed."""

YEAR = 365 * 24 * 3600

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
"""Of every response."""

NO_KEY = "This study is open to those who have its link. Please ask whoever runs it."


class StudyServer:
    """The application for one study.

    Args:
        study: the study.
        votes: its votes.
        folder: where its pictures are.
        host: the address that it listens on. On a loopback one, requests for other hosts are refused.
    """

    def __init__(self, study: Study, votes: Votes, folder: Path, host: str) -> None:
        self.study = study
        self.votes = votes
        self.folder = folder
        self.host = host
        self._ballots: dict[str, Ballot] = {}
        self._lock = threading.Lock()
        # cookies are shared by all ports of a host: two studies must not overwrite each other's
        self._key_cookie, self._judge_cookie = f"study-{study.id}", f"judge-{study.id}"
        routes = [Route("/join/{key}", self._join), Route("/picture/{name}", self._keyed(self._picture))]
        routes += [Route(path, self._keyed(self._file)) for path in FILES]
        routes.append(Route("/favicon.ico", self._keyed(self._nothing)))
        routes += [Route("/api/state", self._keyed(self._state)), Route("/api/pair/{place}", self._keyed(self._pair))]
        for path, accept in (("/api/judge", self._name), ("/api/vote", self._vote)):
            routes.append(Route(path, self._keyed(accept), methods=["POST"]))
        app = Starlette(routes=routes)
        app.router.redirect_slashes = False  # a redirect would repeat the request's Host
        self.app: ASGIApp = _Headers(app)

    def _keyed(self, show: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """`show`, for requests to this host, with the study's key, and from the study's own page."""

        async def checked(request: Request) -> Response:
            if refused := self._refused(request):
                return refused
            return await show(request)

        return checked

    def _refused(self, request: Request) -> Response | None:
        if is_loopback(self.host) and not is_loopback(_hostname(request)):
            return PlainTextResponse("This server is for its own machine only.", 421)
        if not _same(request.cookies.get(self._key_cookie, ""), self.study.key):
            return PlainTextResponse(NO_KEY, 403)
        if request.method == "POST" and not _from_own_page(request):
            return _problem(403, "This request does not come from the study's page.")
        return None

    async def _join(self, request: Request) -> Response:
        if is_loopback(self.host) and not is_loopback(_hostname(request)):
            return PlainTextResponse("This server is for its own machine only.", 421)
        if not _same(request.path_params["key"], self.study.key):
            return PlainTextResponse(NO_KEY, 403)
        response = RedirectResponse("/", 303)
        # lax: the link may be opened from a mail
        response.set_cookie(self._key_cookie, self.study.key, max_age=YEAR, httponly=True, samesite="lax")
        return response

    async def _file(self, request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((PAGE / name).read_bytes(), media_type=kind)

    async def _nothing(self, request: Request) -> Response:
        return Response(status_code=204)

    def _judge(self, request: Request) -> Judge | None:
        return self.votes.of_token(request.cookies.get(self._judge_cookie, ""))

    def _ballot(self, judge: Judge) -> Ballot:
        with self._lock:
            if judge.id not in self._ballots:
                if len(self._ballots) >= MOST_BALLOTS:
                    del self._ballots[next(iter(self._ballots))]
                self._ballots[judge.id] = Ballot(self.study, judge)
            return self._ballots[judge.id]

    async def _state(self, request: Request) -> Response:
        judge = self._judge(request)
        total = len(self.study.pairs)
        if judge is None:
            return JSONResponse({"name": None, "total": total, "done": 0})
        return JSONResponse({"name": judge.name, "total": total, "done": self._ballot(judge).done})

    async def _name(self, request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            return body
        if set(body) != {"name"} or not isinstance(body["name"], str):
            return _problem(400, "A name is expected.")
        if (judge := self._judge(request)) is not None:
            return JSONResponse({"name": judge.name})
        try:
            token = await run_in_threadpool(self.votes.join, body["name"])
        except NameRefused as refused:
            return _problem(400, str(refused))
        except NotSaved as error:
            return _problem(507, str(error))
        response = JSONResponse({"name": body["name"]})
        response.set_cookie(self._judge_cookie, token, max_age=YEAR, httponly=True, samesite="strict")
        return response

    async def _pair(self, request: Request) -> Response:
        if (judge := self._judge(request)) is None:
            return _problem(401, "Please give your name first.")
        text, ballot = request.path_params["place"], self._ballot(judge)
        sheet = ballot.handed(int(text)) if text.isascii() and text.isdecimal() and len(text) < 10 else None
        if sheet is None:
            return _problem(404, "There is no such pair.")
        left, right, *references = (f"/picture/{name}" for name in sheet.pictures)
        return JSONResponse(
            {
                "pair": sheet.name,
                "caption": self.study.pairs[sheet.pair].prompt,
                "references": references,
                "pictures": [left, right],
                "answers": ballot.answers(sheet),
            }
        )

    async def _picture(self, request: Request) -> Response:
        judge = self._judge(request)
        file = None if judge is None else self._ballot(judge).file(request.path_params["name"])
        try:
            data = None if file is None else await run_in_threadpool((self.folder / file).read_bytes)
        except OSError:
            data = None
        return (
            PlainTextResponse("There is no such picture.", 404)
            if data is None
            else Response(data, 200, None, "image/png")
        )

    async def _vote(self, request: Request) -> Response:
        if (judge := self._judge(request)) is None:
            return _problem(401, "Please give your name first.")
        body = await _body(request)
        if isinstance(body, Response):
            return body
        if set(body) != {"pair", "truer", "follows"} or not isinstance(body["pair"], str):
            return _problem(400, "A pair and two answers are expected.")
        truer, follows = _side(body["truer"]), _side(body["follows"])
        if truer is None or follows is None:
            return _problem(400, "An answer is 1, 2 or 0.")
        ballot = self._ballot(judge)
        if (found := ballot.named(body["pair"])) is None:
            return _problem(409, "This pair was not handed to you. Please reload the page.")
        place, sheet = found
        try:
            await run_in_threadpool(self.votes.vote, judge, ballot.vote(sheet, truer, follows))
        except NotSaved as error:
            return _problem(507, str(error))
        return JSONResponse({"place": place, "done": ballot.done})


class _Headers:
    """Adds `HEADERS` to every response, errors too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, seen from itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(request: Request) -> str:
    """The host that a request asks for, without its port; empty if there is none or it is malformed."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _from_own_page(request: Request) -> bool:
    """Whether a request that changes something was sent by the study's own page, not by a page of somebody else."""
    headers = request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return False  # what a form of another page could send
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


async def _body(request: Request) -> dict[str, Any] | Response:
    """The JSON object that a request sends, or the response to a request that sends something else."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            return _problem(413, "This is too long.")
    try:
        body = parse_json(data)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else _problem(400, "A JSON object is expected.")


def _side(value: Any) -> Side | None:
    return value if type(value) is int and value in (0, 1, 2) else None  # type: ignore[return-value]


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
