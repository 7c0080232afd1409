"""A key never reaches a screen, a log, a record, a report or Prefect's database, in whatever form."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from bootpig.stages.engine.contract import InputError
from bootpig.stages.plain_text import printable
from bootpig.storage.errors import StoreError
from bootpig.storage.secrets import hide, mask, mask_logs
from tests.stages.caption.llm.runs import VARIABLE, configured, run

PROJECT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/v1"
SECRET = 'sk-a"b\\c ü/+=&?%41'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        repr(SECRET),
        repr(SECRET.encode()),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        urllib.parse.quote(SECRET),
        urllib.parse.quote_plus(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode()).decode(),
        base64.b64encode(b"me:" + SECRET.encode()).decode(),
        base64.b64encode(b"x" + SECRET.encode() + b"tail").decode(),
    ],
)
def test_every_form_is_hidden(form: str) -> None:
    hide(SECRET)
    shown = mask(f"before {form} after")
    assert "***" in shown and shown.startswith("before ") and shown.endswith(" after")
    core = base64.b64encode(SECRET.encode()).decode()[8:16]
    assert "sk-a" not in shown and core not in shown


def test_variables_named_like_a_key_are_secret_and_words_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("SHORT_TOKEN", "short")
    monkeypatch.setenv("KEYBOARD", "a-long-name-of-a-layout")
    assert mask("correct-horse-battery short a-long-name-of-a-layout") == "*** short a-long-name-of-a-layout"
    assert str(InputError("a: 'correct-horse-battery'")) == "a: '***'"
    assert str(StoreError("a: 'correct-horse-battery'")) == "a: '***'"
    assert printable("correct-horse-battery") == "***"


def test_logs_and_their_tracebacks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    factory = logging.getLogRecordFactory()
    try:
        mask_logs()
        try:
            try:
                raise KeyError("correct-horse-battery")
            except KeyError as error:
                raise ValueError("header b'Bearer correct-horse-battery'") from error
        except ValueError:
            logging.getLogger("anything").exception("failed with %s", "correct-horse-battery")
    finally:
        logging.setLogRecordFactory(factory)
    assert "Traceback" in caplog.text and "KeyError" in caplog.text and "horse" not in caplog.text


BAD_KEYS = {
    "two lines": "sk-first-line-secret\nsk-second-line-secret",
    "a carriage return": "sk-first\r\nsk-second-line-secret",
    "curly quotes": "“sk-quoted-secret-key”",
    "a space": "sk-with a-space-secret",
    "a tab": "sk-with\ta-tab-secret",
    "umlauts": "sk-schlüssel-secret",
    "a null": "sk-null\x01secret",
}


@pytest.mark.parametrize("name", list(BAD_KEYS))
def test_a_key_that_no_header_can_hold_is_found_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(VARIABLE, BAD_KEYS[name])
    config = configured(tmp_path, NOWHERE, units=1)
    assert config.caption.openai is not None
    with pytest.raises(InputError, match=rf"^caption\.openai\.api_key_env: '{VARIABLE}' → character \d+") as told:
        config.caption.openai.key()
    assert "secret" not in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(InputError, match="character"):
        run(config)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_command_line_says_it_in_one_line(tmp_path: Path, command: str) -> None:
    environment = {**os.environ, "OPENAI_API_KEY": BAD_KEYS["two lines"]}
    sets = ["caption.count=20", f"root={tmp_path / 'store'}", "caption.openai.base_url=http://127.0.0.1:9/v1"]
    done = subprocess.run(
        [sys.executable, "-m", "bootpig", command, "sd21", *(f"--set={text}" for text in sets)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "secret" not in told and "Traceback" not in told and "OPENAI_API_KEY" in told
    assert done.returncode == (2 if command == "run" else 0)


def test_a_key_with_a_line_break_at_its_end_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "sk-from-a-file-0123\n")
    config = configured(tmp_path, NOWHERE)
    assert config.caption.openai is not None and config.caption.openai.key() == "sk-from-a-file-0123"
