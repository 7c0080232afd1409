"""Every reader of text and data from outside, fed with damaged input: one line of its own error, never another one.

Each takes two seconds; `BOOTPIG_FUZZ_SECONDS=60` (as `make soak` sets it) takes longer. A failure prints its seed and
its input.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootpig.flows.cli.generate import model_info
from bootpig.flows.loading import parse_config
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.stage import Caption
from bootpig.stages.engine.contract import InputError, Sample
from bootpig.stages.engine.shardio import pack, unpack
from bootpig.stages.evaluate.subjects import read_subjects
from bootpig.stages.text_files import parse_yaml
from bootpig.storage.errors import CorruptPart
from bootpig.storage.jsonio import parse_json
from bootpig.storage.shards import read_shard

SECONDS = float(os.environ.get("BOOTPIG_FUZZ_SECONDS", "2"))

PIECES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[" * 5000,
    b"]",
    b'"',
    b"'",
    b": ",
    b"- ",
    b"\n",
    b"\t",
    b"&a ",
    b"*a",
]
PIECES += [
    b"!!python/object:os.system",
    b"2020-13-45",
    b"9" * 5000,
    b"1e999",
    b".nan",
    b".inf",
    b"0x",
    b"? ",
    b"|",
    b">",
    b"%",
    b"@",
]
PIECES += ["\u2028".encode(), "🦊".encode(), b"\xc3", b"null", b"true", b"~", b"<<: ", b"#", b"---", b"..."]


def damaged(dice: random.Random, data: bytes) -> bytes:
    """The same with a few pieces cut out, doubled, swapped, or put in."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(out) + 1)
        action = dice.randrange(5)
        if action == 0:
            out[place : place + dice.randint(0, 40)] = b""
        elif action == 1:
            out[place:place] = dice.choice(PIECES)
        elif action == 2 and out:
            out[min(place, len(out) - 1)] = dice.randrange(256)
        elif action == 3:
            out = out[:place]
        else:
            out[place:place] = out[dice.randrange(len(out) + 1) :][: dice.randint(1, 200)]
    return bytes(out)


def inputs(data: bytes) -> Iterator[bytes]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    end = time.monotonic() + SECONDS
    yield b""
    while time.monotonic() < end:
        yield damaged(dice, data)


def survives(read: Callable[[bytes], object], data: bytes, expected: tuple[type[Exception], ...]) -> None:
    tried, messages = 0, []
    for damage in inputs(data):
        tried += 1
        try:
            read(damage)
        except expected as error:
            messages.append(str(error))
        except BaseException:
            print(repr(damage[:3000]))
            raise
    assert tried > 10 and messages
    long = [line for message in messages for line in message.splitlines() if len(line) > 2000]
    assert not long, long[0][:3000]


def test_configurations() -> None:
    def read(data: bytes) -> object:
        return parse_config(data.decode("utf-8", "replace"))

    survives(read, (PROJECT / "configs" / "sd21.yaml").read_bytes(), (InputError,))


def test_overrides() -> None:
    toy = (PROJECT / "configs" / "toy.yaml").read_text(encoding="utf-8")

    def read(data: bytes) -> object:
        return parse_config(toy, [data.decode("utf-8", "replace")])

    survives(read, b"train.mixed_precision=bf16", (InputError,))


def test_yaml() -> None:
    survives(lambda data: parse_yaml(data.decode("latin-1")), b"a: [1, 2]\nb: {c: d}\ne: 2020-01-02\n", (ValueError,))


def test_caption_files(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    config = CaptionConfig(source="file", file=str(file), count=1)

    def read(data: bytes) -> object:
        file.write_bytes(data)
        samples = Caption(config, 0).draw(0, range(1))
        return Caption(config, 0).process(samples)

    survives(read, b"A photo of a mug, on a table\nA photo of a cat, here\n", (InputError,))


def test_subjects_files(tmp_path: Path) -> None:
    source = PROJECT / "models" / "toy" / "subjects_held_out"
    names = sorted(path.name for path in source.iterdir() if path.is_dir())[:1]
    for name in names:
        shutil.copytree(source / name, tmp_path / name)

    def read(data: bytes) -> object:
        (tmp_path / "subjects.yaml").write_bytes(data)
        return read_subjects(tmp_path, [], 1)

    survives(read, f"{names[0]}: {{class: mug}}\n".encode(), (InputError,))


def test_json_of_models(tmp_path: Path) -> None:
    info = {"format": 1, "base": "somewhere", "key_scale": 1.0, "metrics": {"dino": [0.1, 0.2]}}

    def read(data: bytes) -> object:
        (tmp_path / "bootpig.json").write_bytes(data)
        return model_info(tmp_path)

    survives(read, json.dumps(info).encode(), (InputError,))


def test_json() -> None:
    survives(parse_json, json.dumps({"a": [1, {"b": "c"}], "d": None}).encode(), (ValueError,))


def test_shards() -> None:
    samples = [Sample(f"{k:016x}", 0, {"caption": "x"}, {"png": b"\x89PNG" * 50}) for k in range(3)]
    whole = pack(samples)

    def read(data: bytes) -> object:
        list(read_shard(data))
        rows = [{"id": sample.id, "unit": 0, "status": "ok", "reason": ""} for sample in samples]
        return unpack(rows, data)

    survives(read, whole[: 512 * 8], (CorruptPart,))


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9))
        + "name: *j\n"
    ],
)
def test_a_bomb_of_aliases_is_one_line(bomb: str) -> None:
    with pytest.raises(InputError) as told:
        parse_config(bomb)
    assert all(len(line) < 500 for line in str(told.value).splitlines())
