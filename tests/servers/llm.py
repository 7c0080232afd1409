"""An OpenAI-compatible endpoint on loopback: `python -m tests.servers.llm [--port N] [--key KEY] [--no-schema]`.

Speaks /v1/chat/completions, /v1/models, /v1/files, /v1/batches, and /v1/images/generations (see `images`). What it
writes follows from the request alone, as if a model sampled with a seed; `--random` writes something new each time.
Faults are injected on demand:

    POST /control/faults  {"kind": "429", "times": 2, "after": 0, "retry_after": 0.01}

`kind`: an HTTP status, `quota`, `refusal`, `content_filter`, `truncated`, `invalid_json`, `empty`, `short`, `prose`,
`html`, `body` (a 200 with the body given), `slow`, `hang`, `echo_key`, `duplicates`, `hostile`, `out_of_range` (a
score of 9), `batch_failed`, `batch_expired`, `batch_hang`, `batch_lost`. `times`: how often (-1: always); `after`:
requests let through before.
`GET /control/log` lists what was asked and answered; `DELETE /control/faults` takes all faults away.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import email
import hashlib
import io
import json
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.servers import images

MODELS = ["writer-1", "writer-1-mini"]
KEY = "sk-loopback-0123456789abcdef"

ADJECTIVES = ["faded", "chipped", "polished", "woven", "painted", "rusty", "tiny", "striped", "brass", "knitted", "old"]
NOUNS = ["mug", "vase", "teapot", "boot", "robot", "balloon", "mushroom", "lantern", "guitar", "camera", "suitcase"]
NOUNS += ["clock", "bicycle", "backpack", "kettle", "lamp", "umbrella", "accordion", "typewriter", "skateboard"]
NOUNS += ["helmet", "drum", "compass", "birdhouse", "toaster", "telescope", "scooter", "violin", "globe", "anvil"]
VERBS = ["resting", "standing", "leaning", "left behind", "half hidden", "placed"]
PLACES = ["on a picnic blanket", "beside a garden gate", "at the edge of a pier", "under a lamp", "on a mossy log"]
PLACES += ["in front of a bakery window", "on a windowsill", "between two stacks of books", "on a gravel path"]
TIMES = [
    "at dawn",
    "in the rain",
    "under soft light",
    "on a foggy morning",
    "in late autumn",
    "after the snow",
    "at noon",
]


class Endpoint:
    """State and handlers of one endpoint."""

    def __init__(self, key: str = KEY, schema: bool = True, surprise: bool = False) -> None:
        self.key = key
        self.schema = schema
        self.surprise = surprise
        self.faults: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.serial = 0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/images/generations", self.draw, methods=["POST"]),
                Route("/v1/pictures/{name}", self.picture),
                Route("/v1/models", self.models),
                Route("/v1/files", self.upload, methods=["POST"]),
                Route("/v1/files/{id}/content", self.content),
                Route("/v1/batches", self.create_batch, methods=["POST"]),
                Route("/v1/batches", self.list_batches),
                Route("/v1/batches/{id}", self.batch),
                Route("/control/faults", self.control, methods=["POST", "DELETE"]),
                Route("/control/log", lambda request: JSONResponse(self.log)),
            ]
        )

    def fault(self, **fault: Any) -> None:
        """Inject a fault; see the module."""
        self.faults.append({"times": 1, "after": 0, "retry_after": None, **fault})

    async def control(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.faults.clear()
        else:
            self.fault(**await request.json())
        return JSONResponse(self.faults)

    def _next_fault(self, *, kind: str = "") -> dict[str, Any]:
        """`kind`: batch and file have their own faults, whose names start so."""
        for fault in self.faults:
            own = next((name for name in ("batch", "file") if fault["kind"].startswith(name)), "")
            if own != kind or not fault["times"]:
                continue
            if fault["after"] > 0:
                fault["after"] -= 1
                continue
            fault["times"] -= 1
            return fault
        return {"kind": "", "retry_after": None}

    def _refused(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "invalid_api_key", f"Incorrect API key: {request.headers.get('authorization')}")
        return None

    async def draw(self, request: Request) -> Response:
        return await self._served(request, "images", images.answer)

    async def picture(self, request: Request) -> Response:
        self.log.append({"path": "picture", "name": request.path_params["name"], "time": time.time()})
        return self._refused(request) or images.file(request.path_params["name"], self._next_fault(kind="file"))

    async def chat(self, request: Request) -> Response:
        return await self._served(request, "chat", self._completed)

    async def _served(self, request: Request, path: str, answer: Callable[..., Response]) -> Response:
        body = await request.json()
        entry = {"path": path, "digest": digest(body), "body": body, "time": time.time(), "status": 200}
        self.log.append(entry)
        if refused := self._refused(request):
            entry["status"] = refused.status_code
            return refused
        fault = self._next_fault()
        kind = fault["kind"]
        if kind == "slow":
            await asyncio.sleep(fault.get("seconds", 0.3))
        if kind == "hang":
            entry["status"] = 0
            await asyncio.sleep(3600)
        response = self._answer(body, fault, answer, request.headers.get("authorization", ""))
        entry["status"] = response.status_code
        return response

    def _answer(
        self, body: dict[str, Any], fault: dict[str, Any], answer: Callable[..., Response], authorization: str = ""
    ) -> Response:
        kind = fault["kind"]
        headers = {} if fault["retry_after"] is None else {"Retry-After": str(fault["retry_after"])}
        if kind.isdigit():
            return error(int(kind), "injected", "an injected fault\nwith \x1b[31mcolour\x1b[0m", headers)
        if kind == "quota":
            return error(429, "insufficient_quota", "You exceeded your current quota", headers)
        if kind == "body":  # a 200 that holds what the test wants
            return Response(fault["body"], media_type="application/json", headers=headers)
        if kind == "html":
            return HTMLResponse("<html><body>gateway says hello</body></html>")
        if kind == "echo_key":
            return error(500, "echo", f"request was {authorization}", headers)
        if body["model"] not in (*MODELS, *images.MODELS):
            return error(404, "model_not_found", f"The model {body['model']!r} does not exist")
        if not self.schema and "response_format" in body:
            return error(400, "unsupported", "response_format is not supported")
        return answer(body, kind, self._rng(body))

    def _completed(self, body: dict[str, Any], kind: str, rng: random.Random) -> Response:
        return JSONResponse(completion(body, kind, rng))

    def _rng(self, body: dict[str, Any]) -> random.Random:
        self.serial += 1
        asked = body["messages"] if "messages" in body else [body["prompt"], body.get("seed")]
        return random.Random(f"{self.serial}" if self.surprise else json.dumps(asked))

    async def models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(
            {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in MODELS],
            }
        )

    async def upload(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + await request.body())
        (data,) = [part.get_payload(decode=True) for part in form.walk() if part.get_filename()]
        id = f"file-{uuid.uuid4().hex[:12]}"
        self.files[id] = bytes(data)
        facts = {
            "id": id,
            "object": "file",
            "bytes": len(self.files[id]),
            "created_at": 0,
            "filename": "captions.jsonl",
        }
        return JSONResponse({**facts, "purpose": "batch", "status": "processed"})

    async def content(self, request: Request) -> Response:
        return self._refused(request) or PlainTextResponse(self.files[request.path_params["id"]])

    async def create_batch(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        asked = await request.json()
        id = f"batch_{uuid.uuid4().hex[:12]}"
        fault = self._next_fault(kind="batch")
        batch = {
            "id": id,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "completion_window": asked["completion_window"],
            "created_at": int(time.time()),
            "input_file_id": asked["input_file_id"],
            "metadata": asked.get("metadata"),
            "status": "in_progress",
        }
        self.batches[id] = batch
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        self.log.append({"path": "batch", "id": id, "requests": len(lines), "time": time.time(), "status": 200})
        if fault["kind"] == "batch_failed":
            batch |= {"status": "failed", "errors": {"data": [{"code": "x", "message": "the file is no good"}]}}
        elif fault["kind"] != "batch_hang":
            if fault["kind"] == "batch_expired":
                lines = lines[: len(lines) // 2]
            output = [
                {"id": uuid.uuid4().hex, "custom_id": line["custom_id"], "error": None, "response": self._batched(line)}
                for line in lines
            ]
            file = f"file-{uuid.uuid4().hex[:12]}"
            self.files[file] = "\n".join(json.dumps(line) for line in output).encode()
            batch |= {"output_file_id": file, "due": 2}
            batch["ends"] = "expired" if fault["kind"] == "batch_expired" else "completed"
        if fault["kind"] == "batch_lost":
            return error(500, "lost", "the batch was made, and the answer lost")
        return JSONResponse(batch)

    def _batched(self, line: dict[str, Any]) -> dict[str, Any]:
        response = self._answer(line["body"], {"kind": "", "retry_after": None}, self._completed)
        return {"status_code": response.status_code, "request_id": "r", "body": json.loads(bytes(response.body))}

    async def list_batches(self, request: Request) -> Response:
        data = list(reversed(self.batches.values()))
        return self._refused(request) or JSONResponse({"object": "list", "data": data, "has_more": False})

    async def batch(self, request: Request) -> Response:
        batch = self.batches[request.path_params["id"]]
        if batch.get("due"):
            batch["due"] -= 1
            if not batch["due"]:
                batch["status"] = batch["ends"]
        return self._refused(request) or JSONResponse(batch)


def completion(body: dict[str, Any], kind: str, rng: random.Random) -> dict[str, Any]:
    """A chat completion with the captions that the prompt asks for, or with a fault of `kind` in them."""
    content = body["messages"][-1]["content"]
    if isinstance(content, list):
        check_pictures(content)
        if asked := re.findall(r'"(\w+)": …', content[0]["text"]):
            return answered(body, *ratings(asked, kind, rng), rng)
        captions = [caption(rng)]
    else:
        captions = [caption(rng) for _ in range(int(re.search(r"\d+", content)[0]))]  # type: ignore[index]
    count = len(captions)
    message: dict[str, Any] = {"role": "assistant", "refusal": None}
    finish = "stop"
    if kind == "duplicates":
        captions = [caption(random.Random(0))] * count
    if kind == "hostile":
        captions[0] = "A photo of a \x1b[31m<script>alert(1)</script>\u202e mug, [link](javascript:x) on a \x07table"
    if kind == "short":
        captions = captions[: count // 2]
    is_structured = "response_format" in body
    if wants_score(body):
        content = score(rng.randrange(5), is_structured) if kind != "out_of_range" else score(9, is_structured)
    else:
        content = json.dumps({"captions": captions}) if is_structured else "\n".join(captions)
    if kind == "refusal":
        content, message["refusal"] = None, "I can't help\nwith \x1b[31mthat."
    elif kind == "content_filter":
        content, finish = "", "content_filter"
    elif kind == "truncated":
        content, finish = content[: len(content) // 2], "length"
    elif kind == "invalid_json":
        content = '{"captions": [{]}'
    elif kind == "empty":
        content = ""
    elif kind == "prose":
        content = "Certainly! I would love to write captions for you."
    message["content"] = content
    return answered(body, message, finish, rng)


def ratings(names: list[str], kind: str, rng: random.Random) -> tuple[dict[str, Any], str]:
    """The message with a rating from 0 to 10 for each name, or with a fault of `kind`, and its `finish_reason`.

    `eleven`: one is 11; `more`: there is one more than was asked; `short`: one is missing; `wrapped`: prose around.
    """
    numbers: dict[str, Any] = {name: rng.randint(0, 10) for name in names}
    if kind == "eleven":
        numbers[names[-1]] = 11
    elif kind == "more":
        numbers["beauty"] = 11
    elif kind == "short":
        del numbers[names[-1]]
    text, finish = json.dumps(numbers), "stop"
    message: dict[str, Any] = {"role": "assistant", "refusal": None}
    if kind == "wrapped":
        text = f"I look closely {{first}}.\n```json\n{text}\n```\nI hope {{this}} helps!"
    elif kind == "refusal":
        text, message["refusal"] = "", "I can't help with that."
    elif kind == "truncated":
        text, finish = text[: len(text) // 2], "length"
    elif kind == "prose":
        text = "It is a beautiful picture: 7 of 10."
    message["content"] = text
    return message, finish


def answered(body: dict[str, Any], message: dict[str, Any], finish: str, rng: random.Random) -> dict[str, Any]:
    """The body of a chat completion."""
    content = message["content"]
    parts = [
        part for m in body["messages"] for part in ([m["content"]] if isinstance(m["content"], str) else m["content"])
    ]
    prompt = sum(len(part) // 4 if isinstance(part, str) else 500 for part in parts)
    usage = {"prompt_tokens": prompt, "completion_tokens": len(content or "") // 4}
    return {
        "id": f"chatcmpl-{rng.getrandbits(32):08x}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def check_pictures(content: list[dict[str, Any]]) -> None:
    """Assert that a message has pictures that can be read."""
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert urls
    for url in urls:
        head, _, data = url.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.load()


def wants_score(body: dict[str, Any]) -> bool:
    """Whether a request asks for a score of a picture, not for captions."""
    content = body["messages"][-1]["content"]
    return isinstance(content, list) and "score" in content[0]["text"].lower()


def score(number: int, structured: bool) -> str:
    text = "The shapes are alike."
    return json.dumps({"reason": text, "score": number}) if structured else f"{text}\nScore: {number}"


def caption(rng: random.Random) -> str:
    words = [rng.choice(kind) for kind in (ADJECTIVES, NOUNS, VERBS, PLACES, TIMES)]
    return "A photo of a {} {}, {} {} {}".format(*words)


def digest(body: dict[str, Any]) -> str:
    """Which request this is: equal bodies have equal digests."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": code, "code": code, "param": None}}, status, headers)


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[str]:
    """Serve on a free loopback port from a thread. Yields the base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(endpoint.app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY, help="the key it accepts; empty: any")
    parser.add_argument("--no-schema", action="store_true", help="answer 400 to a response_format")
    parser.add_argument("--random", action="store_true", help="never write the same twice")
    asked = parser.parse_args()
    endpoint = Endpoint(asked.key, not asked.no_schema, asked.random)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", asked.port))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(endpoint.app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
