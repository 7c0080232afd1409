"""The server over real HTTP: what a judge can see and send, and what nobody can."""

from __future__ import annotations

import io
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import JOURNAL, Votes
from tests.stages.study.evaluated import study_of, write_evaluation
from tests.stages.study.serving import Browser, serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("made")
    runs = [write_evaluation(folder / "secret-a"), write_evaluation(folder / "secret-b", red=200)]
    return folder / "study", study_of(folder / "study", runs)


@pytest.fixture
def url(made: tuple[Path, Study]) -> Iterator[str]:
    folder, study = made
    with serving(folder, study) as address:
        yield address
    (folder / JOURNAL).unlink(missing_ok=True)


@pytest.fixture
def judge(url: str, made: tuple[Path, Study]) -> Browser:
    return Browser(url, made[1]).join("Ada")


def red(browser: Browser, address: str) -> int:
    with Image.open(io.BytesIO(browser.get(address).content)) as picture:
        return picture.getpixel((0, 0))[0]


def test_a_judge_from_first_to_last_pair(judge: Browser, made: tuple[Path, Study]) -> None:
    folder, study = made
    expected = {}
    for place in range(8):
        assert judge.done == place
        pair = judge.pair(place)
        assert pair["answers"] is None
        left, right = (red(judge, address) for address in pair["pictures"])
        assert {left, right} == {0, 200}
        # the subject of the first run is always truer, and the caption is better on the left
        answer = judge.vote(pair, 1 if left == 0 else 2, 1)
        assert answer.json() == {"place": place, "done": place + 1}
        expected[place] = left == 0
    assert judge.get("/api/pair/8").status_code == 404
    rows = Votes(folder, study).rows()
    assert len(rows) == 8
    assert {row["truer"] for row in rows} == {"first"}
    assert all(row["follows"] == row["left"] for row in rows)
    assert sum(row["left"] == "first" for row in rows) == sum(expected.values())
    assert judge.pair(3)["answers"] == {"truer": 1 if expected[3] else 2, "follows": 1}


def test_each_judge_has_an_own_order_own_sides_and_own_names(url: str, made: tuple[Path, Study]) -> None:
    orders, sides, names = set(), set(), set()
    for number in range(6):
        judge = Browser(url, made[1]).join(f"judge {number}")
        captions, lefts = [], []
        for place in range(8):
            pair = judge.pair(place)
            captions.append((pair["caption"], judge.get(pair["references"][0]).content))
            lefts.append(red(judge, pair["pictures"][0]))
            names |= {pair["pair"], *pair["pictures"], *pair["references"]}
            judge.vote(pair, 0, 0)
        orders.add(tuple(captions))
        sides.add(tuple(lefts))
    assert len(orders) > 1
    assert len(sides) > 1
    assert len(names) == 6 * 8 * 4


def test_nothing_that_a_judge_gets_names_a_method_a_run_or_a_file(judge: Browser, made: tuple[Path, Study]) -> None:
    study = made[1]
    telling = ["bootpig", "text_only", "secret", "first", "other", "tEXt", "pHYs", study.id[:6]]
    telling += [pair.first_file for pair in study.pairs]
    lengths: dict[str, set[str]] = {}
    for place in range(4):
        pair = judge.pair(place)
        answers = [judge.get(path) for path in ("/api/state", f"/api/pair/{place}", *pair["references"])]
        pictures = [judge.get(path) for path in pair["pictures"]]
        for answer in [*answers, *pictures, judge.vote(pair, 1, 2)]:
            seen = str(answer.headers).encode() + answer.content
            assert [word for word in telling if word.encode() in seen] == []
            assert {"etag", "last-modified", "server"}.isdisjoint(answer.headers)
        for picture in pictures:
            assert set(picture.headers) == set(pictures[0].headers)
            for name, value in picture.headers.items():
                lengths.setdefault(name, set()).add(value)
        assert all(re.fullmatch("/picture/[0-9a-f]{32}", path) for path in pair["pictures"])
    assert [
        name for name, values in lengths.items() if len(values) > 1 and name not in ("content-length", "date")
    ] == []


def test_only_pairs_that_were_handed_out(url: str, made: tuple[Path, Study], judge: Browser) -> None:
    eve = Browser(url, made[1]).join("Eve")
    mine, hers = judge.pair(0), eve.pair(0)
    for place in ("1", "7", "8", "-1", "01x", "²", "9" * 400, "%2e%2e%2f", ""):
        assert judge.get(f"/api/pair/{place}").status_code in (404, 405), place
    assert judge.vote(hers, 1, 1).status_code == 409
    assert judge.get(hers["pictures"][0]).status_code == 404
    assert judge.get(mine["pictures"][0]).status_code == 200
    assert judge.vote(mine, 1, 2).status_code == 200
    later = judge.pair(1)
    assert judge.vote(mine, 2, 2).status_code == 200, "an earlier vote may be changed"
    assert judge.pair(0)["answers"] == {"truer": 2, "follows": 2}
    assert judge.vote(later, 1, 1).json() == {"place": 1, "done": 2}
    assert eve.done == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"pair": None, "truer": 1, "follows": 1}, 400),
        ({"pair": 7, "truer": 1, "follows": 1}, 400),
        ({"pair": "0" * 32, "truer": 1, "follows": 1}, 409),
        ({"truer": True, "follows": 1}, 400),
        ({"truer": 3, "follows": 1}, 400),
        ({"truer": "1", "follows": 1}, 400),
        ({"truer": 1.0, "follows": 1}, 400),
        ({"truer": 1}, 400),
        ({"truer": 1, "follows": 1, "judge": "x"}, 400),
        ([1, 2], 400),
        ("text", 400),
    ],
)
def test_a_body_that_is_no_vote(judge: Browser, made: tuple[Path, Study], body: Any, status: int) -> None:
    if isinstance(body, dict):
        body = {"pair": judge.pair(0)["pair"], **body}
    answer = judge.post("/api/vote", body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert Votes(*made).rows() == []


def test_bodies_that_are_too_long_or_no_json(judge: Browser, made: tuple[Path, Study]) -> None:
    headers = {"content-type": "application/json"}
    for body, status in ((b"{", 400), (b"[" * 4000, 400), (b"\xff\xfe", 400), (b" " * 5000, 413), (b"1" * 4096, 400)):
        assert judge.client.post("/api/vote", content=body, headers=headers).status_code == status
    assert judge.client.post("/api/vote", content=iter([b" " * 1000] * 50), headers=headers).status_code == 413
    assert judge.done == 0


def test_requests_of_other_pages_change_nothing(judge: Browser, made: tuple[Path, Study]) -> None:
    pair = judge.pair(0)
    body = {"pair": pair["pair"], "truer": 1, "follows": 1}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
    ):
        assert judge.post("/api/vote", body, **headers).status_code == 403, headers
        assert judge.post("/api/judge", {"name": "Eve"}, **headers).status_code == 403, headers
    assert judge.get("/api/vote").status_code == 405
    assert len(Votes(*made).judges) == 1
    assert judge.done == 0
    assert judge.post("/api/vote", body).status_code == 200


def test_without_the_key_there_is_nothing(url: str, made: tuple[Path, Study]) -> None:
    import httpx2

    with httpx2.Client(base_url=url) as stranger:
        for path in ("/", "/study.js", "/api/state", "/api/pair/0", "/picture/x", "/join/", f"/join/{'0' * 32}"):
            assert stranger.get(path).status_code in (403, 404), path
        for path in ("/api/vote", "/api/judge"):
            for value in (b"", b"x", "ü".encode(), "ü".encode("latin-1")):
                cookie = f"study-{made[1].id}=".encode() + value
                assert stranger.post(path, json={"name": "Eve"}, headers={b"cookie": cookie}).status_code == 403
    assert Votes(*made).judges == {}


def test_names_of_other_hosts_are_refused(url: str, made: tuple[Path, Study], judge: Browser) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "0.0.0.0", "localhost@evil.example"):
        assert judge.client.get("/api/state", headers={"host": host}).status_code in (400, 421), host
    for host in ("localhost", "localhost:99", "[::1]:80", "127.0.0.1"):
        assert judge.client.get("/api/state", headers={"host": host}).status_code == 200, host
    folder, study = made
    with serving(folder, study, host="0.0.0.0") as address:
        other = Browser(address, study)
        assert other.client.get("/api/state", headers={"host": "judge.example"}).status_code == 200


def test_no_path_leads_to_another_file(url: str, judge: Browser) -> None:
    host, port = url.removeprefix("http://").split(":")
    cookies = "; ".join(f"{name}={value}" for name, value in judge.client.cookies.items())
    for path in (
        "/picture/../../study.json",
        "/picture/..%2f..%2fstudy.json",
        "/../study.json",
        "/study.json",
        "/votes.jsonl",
        "/pictures/00000-first.png",
        "//etc/hostname",
        "/picture/%00",
        "/page/index.html",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            lines = [f"GET {path} HTTP/1.1", f"Host: {host}", f"Cookie: {cookies}", "Connection: close", "", ""]
            raw.sendall("\r\n".join(lines).encode())
            answer = b"".join(iter(lambda raw=raw: raw.recv(9999), b""))
        assert re.match(rb"HTTP/1.1 (400|404|405) ", answer), path


def test_headers_of_every_response(url: str, judge: Browser) -> None:
    paths = ["/", "/study.js", "/study.css", "/api/state", judge.pair(0)["pictures"][0], "/nothing", "/join/wrong"]
    for path in paths:
        headers = judge.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    for name in ("index.html", "study.css", "study.js"):
        text = Path(__file__).parents[3].joinpath("stages", "study", "page", name).read_text()
        assert re.findall(r"https?://|style=|onclick|innerHTML|@import", text) == []


def test_names_over_http(url: str, made: tuple[Path, Study]) -> None:
    for name in ("x" * 3000, "", 7, None, ["a"]):
        answer = Browser(url, made[1]).post("/api/judge", {"name": name})
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert Browser(url, made[1]).post("/api/judge", {"name": "x" * 10_000}).status_code == 413
    judge = Browser(url, made[1]).join("<img src=x onerror=alert(1)> 🐷")
    assert judge.get("/api/state").json()["name"] == "<img src=x onerror=alert(1)> 🐷"
    assert judge.post("/api/judge", {"name": "again"}).status_code == 200, "two tabs: one judge"
    assert [one.name for one in Votes(*made).judges.values()] == ["<img src=x onerror=alert(1)> 🐷"]


def test_a_judge_goes_on_after_a_restart(made: tuple[Path, Study]) -> None:
    folder, study = made
    with serving(folder, study) as url:
        judge = Browser(url, study).join("Ada")
        first = judge.pair(0)
        judge.vote(first, 1, 0)
        second = judge.pair(1)
        cookies = dict(judge.client.cookies)
    with serving(folder, study) as url:
        again = Browser(url, study)
        for name, value in cookies.items():
            again.client.cookies.set(name, value)
        assert again.done == 1
        assert again.pair(0) == {**first, "answers": {"truer": 1, "follows": 0}}
        assert again.pair(1) == second
        assert again.vote(second, 2, 2).status_code == 200, "a tab that was open meanwhile"
    (folder / JOURNAL).unlink()


def test_two_tabs_and_double_clicks_count_once(judge: Browser, made: tuple[Path, Study]) -> None:
    pair = judge.pair(0)
    for truer in (1, 1, 2, 2):
        assert judge.vote(pair, truer, 1).json() == {"place": 0, "done": 1}
    lines = (made[0] / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["judge", "vote", "vote"]
    assert len(Votes(*made).rows()) == 1
    assert judge.pair(0)["answers"] == {"truer": 2, "follows": 1}


def test_a_vote_that_cannot_be_written_is_an_error_and_does_not_count(judge: Browser, made: tuple[Path, Study]) -> None:
    folder, _ = made
    first = judge.pair(0)
    assert judge.vote(first, 1, 1).status_code == 200
    kept = (folder / JOURNAL).read_bytes()
    second = judge.pair(1)
    (folder / JOURNAL).rename(folder / "away")
    (folder / JOURNAL).mkdir()
    answer = judge.vote(second, 1, 1)
    assert answer.status_code == 507
    assert "could not be saved" in answer.json()["error"]
    assert judge.done == 1
    os.rmdir(folder / JOURNAL)
    # a journal that somebody removed must not go on without its votes
    assert judge.vote(second, 1, 1).status_code == 507
    (folder / "away").replace(folder / JOURNAL)
    assert judge.vote(second, 1, 1).json() == {"place": 1, "done": 2}
    assert (folder / JOURNAL).read_bytes().startswith(kept)
    assert len(Votes(*made).rows()) == 2
