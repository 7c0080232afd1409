"""Artifacts: captions are escaped, and a server that refuses artifacts does not fail the run."""

from __future__ import annotations

import io

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
