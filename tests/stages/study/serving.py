"""A study served on a free loopback port, and judges that ask it over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from bootpig.stages.study.server import StudyServer
from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import Votes


@contextmanager
def serving(folder: Path, study: Study, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve from a thread, with the votes as they are on disk. Yields the base URL."""
    votes = Votes(folder, study)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            StudyServer(study, votes, folder, host).app, log_level="error", lifespan="off", server_header=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


class Browser:
    """What a judge's browser sends: cookies, and the headers of the study's own page."""

    def __init__(self, url: str, study: Study) -> None:
        self.url = url
        self.client = httpx2.Client(base_url=url)
        assert self.client.get(f"/join/{study.key}", follow_redirects=True).status_code == 200

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        own = {"origin": self.url, "sec-fetch-site": "same-origin"}
        return self.client.post(path, json=body, headers={**own, **headers})

    def join(self, name: str) -> Browser:
        answer = self.post("/api/judge", {"name": name})
        assert answer.status_code == 200, answer.text
        return self

    def pair(self, place: int) -> dict[str, Any]:
        answer = self.get(f"/api/pair/{place}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def vote(self, pair: dict[str, Any], truer: int, follows: int) -> Any:
        return self.post("/api/vote", {"pair": pair["pair"], "truer": truer, "follows": follows})

    @property
    def done(self) -> int:
        return int(self.get("/api/state").json()["done"])
