"""Artifacts: captions are escaped, and a server that refuses artifacts does not fail the run."""

from __future__ import annotations

import base64
import io
from uuid import uuid4

import pytest
from PIL import Image

from bootpig.flows import artifacts
from bootpig.stages.plain_text import markdown
from bootpig.stages.report.gather import Example, Report, data_uri

HOSTILE = "A <script>alert(1)</script> [x](javascript:y) **b** `c` | d\n# head ![i](http://e/p.png) www.e.com \\"


def test_the_sheet_shows_samples_where_there_is_no_model_yet() -> None:
    picture = data_uri(Image.new("RGB", (16, 16), "red"))
    report = Report("toy", "run", examples=[Example(HOSTILE, picture, picture, (picture, picture))] * 3)
    text = artifacts.sheet_markdown(report)
    assert text.count("![") == 1
    assert markdown(HOSTILE) in text
    assert not any(harm in text for harm in ("<script>", "http://", "javascript:", "www.e", "**b**", "[x]"))
    assert artifacts.sheet_markdown(Report("toy", "run")) == ""


def test_a_server_that_refuses_artifacts_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()

    class Logger:
        def warning(self, text: str, *values: object) -> None:
            said.write(text % values)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("the server\nis gone")

    monkeypatch.setattr(artifacts, "get_run_logger", Logger)
    monkeypatch.setattr(artifacts, "create_table_artifact", refuse)
    artifacts.publish(Report("toy", "run"), "file:///nowhere")
    assert said.getvalue().endswith(": the server is gone")


def test_the_curves_are_a_picture_and_a_table() -> None:
    points = [(step, 1 / step) for step in range(1, 9)]
    text = artifacts.curves_markdown(Report("toy", "run", curves={"loss": points, "grad_norm_base": points}))
    image, _, *table = text.splitlines()
    assert base64.b64decode(image.partition(",")[2].rstrip(")")).startswith(b"<svg ")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| Training loss", "| Gradient norm, base UNet"]
    assert artifacts.curves_markdown(Report("toy", "run")) == ""


def test_progress_tells_the_newest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(
        artifacts, "update_progress_artifact", lambda _, progress, description: said.append((progress, description))
    )
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.0)
    with artifacts.stage_progress("train") as update:
        update(5, 10, "loss 0.1234")
        update(10, 10, "")
    assert said == [(50.0, "train: loss 0.1234"), (100.0, "train")]
