"""The page of a study in a real browser: keys, back, two tabs, a phone, a full disk, hostile text.

`BOOTPIG_SCREENSHOTS=docs/images` keeps the picture for docs/study.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig.models.toy.subject_folder import FOLDER as SUBJECTS
from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import JOURNAL, Votes
from tests.flows.chromium import chromium, keep
from tests.stages.study.evaluated import study_of, write_evaluation
from tests.stages.study.serving import serving

HOSTILE = "a mug <img src=x onerror=document.title='owned'> in the snow"
PAIRS = 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("made")
    prompts = (HOSTILE, HOSTILE.replace("snow", "rain"), HOSTILE.replace("snow", "sun"))
    shape: dict[str, Any] = {"subjects": ("mug",), "prompts": prompts, "images": 1}
    runs = [write_evaluation(folder / "a", **shape), write_evaluation(folder / "b", red=200, **shape)]
    return folder / "study", study_of(folder / "study", runs)


@pytest.fixture
def url(made: tuple[Path, Study]) -> Iterator[str]:
    folder, study = made
    with serving(folder, study) as address:
        yield address
    (folder / JOURNAL).unlink(missing_ok=True)


class Judge:
    """A judge's browser, on the study's page."""

    def __init__(self, browser: Any, url: str, study: Study, **options: Any) -> None:
        options = {"viewport": {"width": 900, "height": 900}, "color_scheme": "light", **options}
        self.context = browser.new_context(**options)
        self.faults: list[str] = []
        self.page = self.tab()
        self.page.goto(f"{url}/join/{study.key}")

    def tab(self) -> Any:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda entry: entry.type == "error" and self.faults.append(entry.text))
        return page

    def begin(self, name: str) -> Judge:
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Begin").click()
        self.at(1)
        return self

    def at(self, number: int, page: Any = None) -> Any:
        """Wait until a pair can be judged."""
        page = page or self.page
        page.get_by_role("heading", name=f"Pair {number} of {PAIRS}").wait_for()
        page.locator("#truer button:enabled").first.wait_for()
        page.wait_for_timeout(400)  # longer than the page ignores what may be a double click
        return page


@pytest.fixture
def judge(browser: Any, url: str, made: tuple[Path, Study]) -> Iterator[Judge]:
    judge = Judge(browser, url, made[1])
    yield judge
    judge.context.close()
    assert [fault for fault in judge.faults if "favicon" not in fault] == []


def rows(made: tuple[Path, Study]) -> list[dict[str, Any]]:
    return Votes(*made).rows()


def sides(made: tuple[Path, Study]) -> list[tuple[str, str]]:
    """The answers in the order in which they were first given, as `left`, `right` or `neither`."""
    found = []
    for row in sorted(rows(made), key=lambda row: row["time"]):
        said = [row["truer"], row["follows"]]
        found.append(tuple("neither" if s == "neither" else "left" if s == row["left"] else "right" for s in said))
    return found


def test_all_pairs_with_the_keyboard(judge: Judge, made: tuple[Path, Study]) -> None:
    judge.begin("Ada <b>bold</b> 🐷")
    page = judge.page
    assert page.get_by_text("<img src=x onerror").count() == 1
    assert page.locator("main img").count() == 3
    page.keyboard.press("1")
    page.keyboard.press("ArrowLeft")  # takes the first answer back
    page.keyboard.press("2")
    page.keyboard.press("0")
    judge.at(2)
    page.keyboard.press("1")
    page.keyboard.press("1")
    judge.at(3)
    page.keyboard.press("Backspace")
    judge.at(2)
    assert page.locator("button[aria-pressed=true]").all_inner_texts() == ["1", "1"]
    page.keyboard.press("ArrowRight")  # as it was
    judge.at(3)
    page.keyboard.press("Backspace")
    judge.at(2)
    page.keyboard.press("2")
    page.keyboard.press("2")
    judge.at(3)
    for key in ("3", "x", "Control+1", "0", "2"):
        page.keyboard.press(key)
    page.get_by_role("heading", name="Thank you").wait_for()
    assert sides(made) == [("right", "neither"), ("right", "right"), ("neither", "right")]
    assert page.title() == "Which picture is better?"


def test_a_closed_tab_goes_on_where_it_was(judge: Judge, made: tuple[Path, Study], url: str) -> None:
    judge.begin("Ada")
    judge.page.keyboard.press("1")
    judge.page.keyboard.press("2")
    judge.at(2)
    judge.page.keyboard.press("1")  # half of an answer is no vote
    judge.page.close()
    again = judge.tab()
    again.goto(url)
    judge.at(2, again)
    assert again.locator("button[aria-pressed=true]").count() == 0
    other = judge.tab()
    other.goto(url)
    judge.at(2, other)
    for page, key in ((again, "1"), (other, "2")):  # two tabs: the newest answer counts, once
        page.keyboard.press(key)
        page.keyboard.press(key)
        judge.at(3, page)
    assert sides(made) == [("left", "right"), ("right", "right")]


def test_a_double_click_answers_one_pair(judge: Judge, made: tuple[Path, Study]) -> None:
    judge.begin("Ada")
    judge.page.locator("#truer button").first.dblclick()
    judge.page.locator("#follows button").nth(1).dblclick()
    judge.at(2)
    assert judge.page.locator("button[aria-pressed=true]").count() == 0
    assert sides(made) == [("left", "right")]


def test_a_phone_in_the_dark(browser: Any, url: str, made: tuple[Path, Study]) -> None:
    judge = Judge(
        browser,
        url,
        made[1],
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
    ).begin("Ada")
    page = judge.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background[4:-1].split(","))) < 150
    for button in page.locator(".question button").all():
        assert button.bounding_box()["height"] >= 44
    page.locator("#truer button").nth(1).tap()
    page.locator("#follows button").nth(2).tap()
    judge.at(2)
    assert sides(made) == [("right", "neither")]
    judge.context.close()


def test_it_can_be_used_without_seeing_it(judge: Judge, made: tuple[Path, Study]) -> None:
    judge.begin("Ada")
    page = judge.page
    assert [image.get_attribute("alt") for image in page.locator("main img").all()] == [
        "Reference",
        "Picture 1",
        "Picture 2",
    ]
    assert page.evaluate("document.activeElement.id") == "number"
    for question in (
        "In which picture is the subject truer to the reference?",
        "Which picture follows the caption better?",
    ):
        group = page.get_by_role("group", name=question)
        group.get_by_role("button", name="Picture 2").focus()
        page.keyboard.press("Enter")
    judge.at(2)
    assert page.evaluate("document.activeElement.id") == "number"
    assert sides(made) == [("right", "right")]


def test_a_vote_that_is_not_saved_is_said_and_can_be_sent_again(
    browser: Any, url: str, made: tuple[Path, Study]
) -> None:
    folder, _ = made
    judge = Judge(browser, url, made[1]).begin("Ada")
    page = judge.page
    (folder / JOURNAL).rename(folder / "away")
    (folder / JOURNAL).mkdir()
    page.keyboard.press("1")
    page.keyboard.press("2")
    alert = page.get_by_role("alert")
    alert.get_by_text("could not be saved").wait_for()
    (folder / JOURNAL).rmdir()
    (folder / "away").rename(folder / JOURNAL)
    alert.get_by_role("button", name="Try again").click()
    judge.at(2)
    assert not alert.is_visible()
    assert sides(made) == [("left", "right")]
    judge.context.close()


def test_names_that_are_taken_or_empty(browser: Any, url: str, made: tuple[Path, Study], judge: Judge) -> None:
    judge.begin("Ada")
    second = Judge(browser, url, made[1])
    second.page.get_by_label("Your name").fill("ada")
    second.page.get_by_role("button", name="Begin").click()
    second.page.get_by_role("alert").get_by_text("This name is taken").wait_for()
    second.begin("Bob")
    assert [one.name for one in Votes(*made).judges.values()] == ["Ada", "Bob"]
    second.context.close()


def test_small_pictures_are_shown_with_sharp_pixels(browser: Any, tmp_path: Path) -> None:
    run = write_evaluation(
        tmp_path / "run", subjects=("mug",), prompts=("A photo of a mug, in the center on a blue carpet",), images=1
    )
    for name, number in (("reference/mug-00", 0), ("text_only/mug-00-00", 2), ("bootpig/mug-00-00", 3)):
        shutil.copy(sorted(SUBJECTS.glob("mug*"))[0] / f"{number:02d}.png", run / "images" / f"{name}.png")
    study = study_of(tmp_path / "study", [run])
    with serving(tmp_path / "study", study) as url:
        judge = Judge(browser, url, study)
        judge.page.get_by_label("Your name").fill("Ada")
        judge.page.get_by_role("button", name="Begin").click()
        judge.page.locator("#truer button:enabled").first.wait_for()
        style = "getComputedStyle(document.getElementById('left')).imageRendering"
        assert judge.page.evaluate(style) == "pixelated"
        keep(judge.page, "study")
        judge.context.close()
