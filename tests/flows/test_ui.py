"""The Prefect UI in a real browser: a run, its artifacts, and a form of parameters that starts a run.

`BOOTPIG_SCREENSHOTS=docs/images` keeps the pictures for docs/prefect.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootpig.flows.runs.records import list_runs
from bootpig.storage.root import Root
from tests.flows.chromium import chromium, keep
from tests.flows.live import Live, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, live: Live) -> Iterator[object]:
    page = browser.new_page(viewport={"width": 1200, "height": 820}, color_scheme="light")
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    page.close()


def test_a_run_its_artifacts_and_a_form(page, live: Live, tmp_path: Path, subjects: Path) -> None:
    # captions that would do harm as HTML or Markdown come first, as an LLM may write them
    captions = tmp_path / "captions.txt"
    hostile = "A photo of a mug<img src=x onerror=document.title='owned'> **bold** [link](http://evil), on a table"
    plain = [f"A photo of a {kind}, on the left on a sandy beach" for kind in ("mug", "vase", "ball", "fish", "car")]
    captions.write_text("\n".join([hostile, *plain, *plain, *plain][:16]) + "\n")
    config = tiny(tmp_path / "store", **{"evaluate.subjects": subjects}).model_dump(mode="json", exclude_unset=True)
    config["caption"] = {"source": "file", "file": str(captions), "count": 16}
    flow_run = live.trigger("bootstrap", config=config, until="encode")
    assert live.wait(flow_run)["type"] == "COMPLETED", live.tail()

    page.goto(f"{live.ui}/runs/flow-run/{flow_run}")
    page.get_by_text("bootstrap toy").first.wait_for()
    page.get_by_text("Subflow Runs", exact=True).click()
    for stage in ("caption", "synthesize", "segment", "augment", "encode"):
        page.locator(".flow-run-list-item, .state-list-item", has_text=stage).first.wait_for()
    keep(page, "run")
    page.get_by_text("Artifacts", exact=True).last.click()
    for key in ("toy-yields", "toy-contact-sheet", "toy-report"):
        page.get_by_text(key).first.wait_for()

    page.goto(f"{live.ui}/artifacts/artifact/{live.artifacts(flow_run)['toy-contact-sheet']['id']}")
    page.get_by_text("mug<img src=x").first.wait_for()
    sheet = page.locator("img[alt='contact sheet']")
    sheet.wait_for()
    assert sheet.evaluate("image => image.naturalWidth") > 100
    assert page.locator("img[src='x'], a[href*='evil']").count() == 0
    assert page.get_by_text("**bold**").count() > 0
    assert "owned" not in page.title()
    keep(page, "sheet")
    page.goto(f"{live.ui}/artifacts/artifact/{live.artifacts(flow_run)['toy-yields']['id']}")
    page.get_by_text("synthesize").first.wait_for()

    page.goto(f"{live.ui}/deployments/deployment/{live.deployment('run_stage')['id']}/run")
    store = tmp_path / "from-the-form"
    fill(page, "stage", "caption")
    fill(page, "Root", str(store))
    fill(page, "Unit Size", "8")
    fill(field(page, "Caption"), "Count", "16")  # other sections have a count, too
    keep(page, "form")
    with page.expect_response("**/create_flow_run") as answer:
        page.get_by_role("button", name="Submit").click()
    assert answer.value.ok, answer.value.text()
    started = answer.value.json()["id"]
    assert live.wait(started)["type"] == "COMPLETED", live.tail()
    (record,) = list_runs(Root(str(store)))
    assert (record.flow_run, record.stages["caption"].made) == (started, [0, 1])
    assert page.faults == []


def field(form, label: str):
    """One field or section of a form or section, found by its label: the innermost that has it."""
    labels = getattr(form, "page", form).locator(".schema-form-property__label")
    name = labels.get_by_text(label, exact=True).or_(labels.get_by_text(f"{label} (Optional)", exact=True))
    return form.locator(".p-label.schema-form-property").filter(has=name).last


def fill(form, label: str, text: str) -> None:
    field(form, label).locator("input, textarea").first.fill(text)
