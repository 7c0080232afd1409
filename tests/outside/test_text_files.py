"""Text files as editors and other systems save them, at every place that reads one; outputs that can't be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootpig.flows.cli.draw import _prompts, check_writable
from bootpig.flows.loading import load_config
from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.stage import Caption
from bootpig.stages.engine.contract import InputError

PROJECT = Path(__file__).parents[2]
ONE, TWO = "A photo of a café chair, on a terrace", "A photo of a mug,\u2028on a table"


def captions(file: Path) -> list[str]:
    config = CaptionConfig(source="file", file=str(file), count=2)
    return [sample.meta["caption"] for sample in Caption(config, 0).draw(0, range(2))]


def prompts(file: Path) -> list[str]:
    return _prompts([], str(file))


READERS = [captions, prompts]

ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 of the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "old mac line ends": lambda text: text.replace("\n", "\r").encode(),
    "no line end": lambda text: text.rstrip("\n").encode(),
    "blank lines": lambda text: ("\n \n" + text.replace("\n", "\n\n\t\n")).encode(),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", list(ENCODINGS))
def test_every_encoding_at_every_place(read: Callable[[Path], list[str]], name: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes(ENCODINGS[name](f"{ONE}\n{TWO}\n"))
    assert read(tmp_path / "lines.txt") == [ONE, TWO]


BAD = {
    "latin-1": (f"{ONE}\n{ONE}\n".encode("latin-1"), "line 1 → is not UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1 → is not UTF-8"),
    "utf-16 without a mark": ("A photo of a mug, here\n".encode("utf-16-le"), "line 1 → is not text"),
    "a nul": (b"A photo of a mug, here\nA photo of a\0 mug, there\n", "line 2 → is not text"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", list(BAD))
def test_what_is_no_text_is_named(read: Callable[[Path], list[str]], name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    (tmp_path / "lines.txt").write_bytes(data)
    with pytest.raises(InputError, match=message) as told:
        read(tmp_path / "lines.txt")
    assert "\n" not in str(told.value) and "lines.txt" in str(told.value)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_named(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", Path("a\0b")):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("name", ["with a mark", "utf-16", "windows line ends"])
def test_a_configuration_too(name: str, tmp_path: Path) -> None:
    text = (PROJECT / "configs" / "toy.yaml").read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_bytes(ENCODINGS[name](text))
    assert load_config(tmp_path / "own.yaml").name == "toy"
    (tmp_path / "bad.yaml").write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"^config: .*line 1 → is not UTF-8"):
        load_config(tmp_path / "bad.yaml")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.png", Path("/proc/nowhere/out.png"), Path("/dev/null/out.png")):
        with pytest.raises(InputError, match=r"^--out: .* → cannot be written"):
            check_writable("--out", path)
    check_writable("--out", tmp_path / "new" / "folder" / "out.png")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_it_is_found_before_the_model_is_loaded(command: str) -> None:
    out = "/proc/nowhere/out.png"
    options = {
        "generate": ["no-model", "--prompt", "A photo of a mug, here", "--out", out],
        "evaluate": ["no-model", "--config", "toy", "--out", out],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "bootpig", command, *options],
        cwd=PROJECT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("--out: ") and done.stderr.count("\n") == 1, done.stderr
