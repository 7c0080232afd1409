"""The page: what is measured is on it, what is missing is named, and nothing else has a number."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root
from science import page as science_page
from science.figures import Point, curves, points
from science.page import write_page
from science.pictures import sheet
from science.results import Cell, Evaluation, Plan, Results


def evaluation(value: float, method: str = "bootpig") -> Evaluation:
    """The same score for both subjects and all metrics; a training of 100 s with 50 updates, and 8 s of evaluation."""
    scores = {method: {metric: {"a": value, "b": value} for metric in ("clip_t", "clip_i", "dino")}}
    seconds = {"train": (f"train/{value}", 100.0), "evaluate": (f"evaluate/{value}", 8.0)}
    return Evaluation(50, scores, {"dino": 0.9}, seconds, "", "evaluate/none/result/none")


def cell(name: str, *seeds: Evaluation | None, **settings: object) -> Cell:
    return Cell(name, settings, {f"train.seed={number}": each for number, each in enumerate(seeds)})


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(science_page, "TUNING", tmp_path / "tuning.json")


def written(results: Results, folder: Path) -> str:
    return write_page(results, folder).read_text(encoding="utf-8")


def test_a_page_without_results_has_no_numbers(tmp_path: Path) -> None:
    cells = {"trained-parts": {"RSA / all": cell("RSA / all", None, None)}}
    text = written(Results(cells, {"rivals": "evaluate.rivals: wrong"}), tmp_path)
    assert "Of 2 runs, 0 are measured. The others are named [below](#missing)" in text and "\n## Missing\n" in text
    assert "- trained-parts: RSA / all, seed 0; RSA / all, seed 1" in text
    assert "- rivals: evaluate.rivals: wrong" in text
    assert "Not measured yet" in text
    assert "are not tuned" in text
    assert set(re.findall(r"\*\*([a-z ]+)\*\*", text)) == {"not measured"}
    rows = [line for line in text.splitlines() if line.startswith("| RSA / all |")]
    assert rows
    assert not re.search(r"\d", rows[0])
    assert not list((tmp_path / "images" / "science").iterdir())


def test_where_all_is_measured_the_page_names_nothing_that_is_missing(tmp_path: Path) -> None:
    cells = {"trained-parts": {"RSA / all": cell("RSA / all", evaluation(0.7), evaluation(0.72))}}
    text = written(Results(cells), tmp_path)
    assert "All 2 runs are measured.\n" in text
    assert "missing" not in text.lower()
    assert text.endswith(".\n")


def test_verdicts_tables_figures_and_costs_follow_from_the_results(tmp_path: Path) -> None:
    parts = {
        "RSA / all": cell("RSA / all", evaluation(0.7), evaluation(0.72)),
        "nothing / all": cell("nothing / all", evaluation(0.4), evaluation(0.42)),
        "RSA / nothing": cell("RSA / nothing", evaluation(0.8), None),
    }
    updates = {"train.steps=300": cell("train.steps=300", evaluation(0.7), **{"train.steps": 300})}
    text = written(Results({"trained-parts": parts, "updates": updates}, plan=Plan(4, 400, 10)), tmp_path)
    lines = text.splitlines()

    def row(start: str) -> str:
        return next(line for line in lines if line.startswith(start))

    assert (
        row("| nothing / all |")
        == "| nothing / all | 0.410 ± 0.014 | 0.410 ± 0.014 | 0.410 ± 0.014 | -0.300 (-0.300 to -0.300) |"
    )
    assert row("| RSA / nothing |") == "| RSA / nothing | – | – | – | – |"
    assert "+0.300 (+0.300 to +0.300) | **reproduced**" in row("| Training RSA beside")
    assert "**not measured**" in row("| Training the Reference UNet beside RSA")
    assert row("| trained-parts |") == "| trained-parts | 5 | 500 | 40 |"
    assert row("| updates |") == "| updates | 1 | 0 | 0 |"  # shared with the first sweep
    assert "At the 2.00 s per update and 8 s per evaluation of the runs above, that is 0.2 h" in text
    for name in ("trained-parts", "updates"):
        assert f"images/science/{name}.svg" in text
        ElementTree.parse(tmp_path / "images" / "science" / f"{name}.svg")
    assert "- trained-parts: RSA / nothing, seed 1" in text


def test_figures_say_what_is_not_measured_and_are_well_formed() -> None:
    svg = points("a < b", "DINO", [("one & two", Point(0.5, 0.4, 0.6)), ("three", None)])
    assert "not measured" in "".join(ElementTree.fromstring(svg).itertext())
    assert "one & two" in "".join(ElementTree.fromstring(svg).itertext())
    ElementTree.fromstring(points("empty", "DINO", []))
    line = [(100.0, Point(0.5, 0.5, 0.5)), (3000.0, Point(0.7, 0.6, 0.8))]
    text = "".join(ElementTree.fromstring(curves("t", "x", "y", {"BootPIG": line})).itertext())
    assert "3,000" in text
    ElementTree.fromstring(curves("one", "x", "y", {"a": line[:1]}))


def test_pictures_are_spread_over_all_subjects(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    names = [f"subject-{number:02d}" for number in range(24)]
    rows = []
    for number, name in enumerate(names):
        for method in ("reference", "text_only", "bootpig"):
            files = [f"{name}-00.png"] if method == "reference" else [f"{name}-00-00.png", f"{name}-01-00.png"]
            for file in files:
                path = drawn / "images" / method / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (10 * number, 0, 255 if "-01-" in file else 0)).save(path)
                if method != "reference":
                    rows.append({"method": method, "subject": name, "file": f"images/{method}/{file}"})
    pq.write_table(pa.Table.from_pylist(rows), drawn / "scores.parquet")
    store = Root(str(tmp_path / "store"))
    published = publish_folder(store, "evaluate/0123456789abcdef/result", drawn)
    run = Evaluation(1, {}, {}, {}, store.url, published.path)
    assert not sheet(Results({}), tmp_path / "sheet.png")
    assert sheet(Results({"ours": {"as shipped": cell("as shipped", run)}}), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        colours = {colour for _, colour in picture.getcolors(maxcolors=picture.width * picture.height)}
    assert colours == {(255, 255, 255), *((20 * number, 0, 0) for number in range(12))}
