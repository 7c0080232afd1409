"""Every name that S3 and Linux allow is taken as it is, also by whatever reads a list or removes a folder."""

from __future__ import annotations

import random
import string
import uuid
from pathlib import Path

import pytest

from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

ODD = " #%+&=~!'(),;:@$^{}[]*?äß漢🦊"
PAIRS = [("data[12]", "data1"), ("data*", "data-old"), ("d?ta", "data"), ("data [v2]", "data v"), ("a..b", "a.b")]
PAIRS += [("[!x]", "y"), ("**", "anything"), ("50%25", "50%"), ("a+b", "a b"), ("a::b", "a"), ("x#1", "x"), ("~", "z")]
"""Names of stores: the first, taken for a pattern or an escaped name, is also the second."""


@pytest.fixture(params=["local", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where stores can be made, with a trailing slash."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = uuid.uuid4().hex
    return {
        "local": f"{tmp_path}/",
        "file": f"file://{tmp_path}/",
        "memory": f"memory://{name}/",
        "s3": f"s3://data/{name}/",
    }[request.param]


def fill(root: Root, names: list[str]) -> None:
    for name in names:
        root.write(f"train/{name}/file", name.encode())
        root.write(f"train/{name}/deep/er", name.encode())


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_stores_whose_names_are_patterns_of_each_other(place: str, one: str, other: str) -> None:
    if "::" in one and "://" in place:
        pytest.skip("`::` chains file systems in a URL, by fsspec's own rule")
    roots = Root(place + one), Root(place + other)
    for root in roots:
        fill(root, ["abc", "a[b]c"])
    assert roots[0].read_many(["train/abc/file", "train/a[b]c/file", "train/a?c/file"]) == {
        "train/abc/file": b"abc",
        "train/a[b]c/file": b"a[b]c",
    }
    roots[0].remove("train/a[b]c", recursive=True)
    assert roots[0].folders("train") == ["abc"], "only its own name goes"
    roots[0].remove("train/abc", recursive=True)
    assert roots[0].folders("train") == [] and roots[0].read_many(["train/abc/file", "train/abc/deep/er"]) == {}
    assert sorted(roots[1].folders("train")) == ["a[b]c", "abc"]
    assert roots[1].read("train/a[b]c/deep/er") == b"a[b]c"
    roots[1].remove("train/abc/file")
    assert roots[1].names("train/abc") == {} and roots[1].read("train/a[b]c/file") == b"a[b]c"


def test_names_at_random(place: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(15):
        alphabet = ODD + string.ascii_letters + "..-_"
        store, *names = (
            "x" + "".join(dice.choice(alphabet) for _ in range(dice.randint(1, 12))).replace("::", ":")
            for _ in range(6)
        )
        root = Root(place + store)
        names = list(dict.fromkeys(names))
        fill(root, names)
        assert root.folders("train") == sorted(names)
        assert len(root.read_many([f"train/{name}/file" for name in names])) == len(names)
        victim, *others = names
        root.remove(f"train/{victim}", recursive=True)
        assert root.folders("train") == sorted(others)
        assert all(root.read(f"train/{name}/deep/er") == name.encode() for name in others)


@pytest.mark.parametrize("name", ["data [v2]", "data[12]", "da*ta"])
def test_a_unit_is_committed_and_found(place: str, name: str) -> None:
    import pyarrow as pa

    parts = Parts(Root(place + name), "encode", "0123456789abcdef")
    parts.commit(3, [{"id": "a", "unit": 3, "status": "ok", "reason": ""}], pa.schema([]), b"payload", "")
    found = parts.listing(range(5)).markers
    assert list(found) == [3] and parts.payload(3, found[3]) == b"payload"
