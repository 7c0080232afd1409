"""The report of a real store, filled by the engine with fast stages, and of hostile text."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from bootpig.stages.engine.engine import Engine
from bootpig.stages.evaluate.results import result_rows, results_table
from bootpig.stages.pictures import encode_mask
from bootpig.stages.report.charts import charts, curve, picture
from bootpig.stages.report.gather import (
    Example,
    Rejected,
    Report,
    SheetEntry,
    StageDone,
    StageFacts,
    SubjectCount,
    collect_examples,
    collect_rejected,
    data_uri,
    gather,
    read_sheet,
)
from bootpig.stages.report.html import build_report, duration
from bootpig.stages.train.curves import CHARTS
from bootpig.storage.root import Root
from bootpig.storage.shards import write_shard
from tests.stages.doubles import config, doubles  # noqa: F401

METHODS = {
    "text_only": {"clip_t": (0.30, 0.29, 0.31), "clip_i": (0.78, 0.76, 0.80), "dino": (0.40, 0.36, 0.44)},
    "untrained": {"clip_t": (0.24, 0.22, 0.26), "clip_i": (0.80, 0.78, 0.82), "dino": (0.45, 0.41, 0.49)},
    "bootpig": {"clip_t": (0.29, 0.28, 0.30), "clip_i": (0.83, 0.81, 0.85), "dino": (0.55, 0.51, 0.59)},
    "bootpig_no_reference": {"clip_t": (0.30, 0.29, 0.31), "clip_i": (0.77, 0.75, 0.79), "dino": (0.41, 0.37, 0.45)},
    "real": {"clip_t": None, "clip_i": (0.90, 0.89, 0.91), "dino": (0.80, 0.77, 0.83)},
}
CURVES = ("loss", "reference_gain", "grad_norm_base")
HOSTILE = '<script>alert("pig")</script><img src=x onerror=alert(1)>'


def metrics() -> dict:
    def value(triple):
        return triple and {"mean": triple[0], "ci95": [triple[1], triple[2]]}

    table = {method: {name: value(triple) for name, triple in row.items()} for method, row in METHODS.items()}
    return {"subjects": 32, "images": 64, "methods": table, "gap_closed_dino": 0.375}


def png(colour: tuple[int, int, int] = (200, 30, 30), size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


MASK = encode_mask(np.ones((16, 16), bool))

VOID = {"meta", "img", "path", "link", "br"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; unclosed tags are kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def store(tmp_path, tmp_path_factory, doubles):  # noqa: F811
    """An engine with a finished run, including the files that the real train and evaluate stages write."""
    built = tmp_path_factory.getbasetemp() / "report-store"
    if not built.exists():
        fill(Engine(config(tmp_path / "built")))
        shutil.copytree(tmp_path / "built", built)
    shutil.copytree(built, tmp_path / "data")
    return Engine(config(tmp_path / "data"))


def fill(engine: Engine) -> None:
    for name in ("caption", "synthesize", "segment", "augment", "encode"):
        for unit in engine.units():
            assert engine.run_unit(name, unit).state == "done"
    engine.run_reduce("train")
    engine.run_reduce("evaluate")
    surveys = engine.survey_all()
    log = "\n".join(
        json.dumps({"step": step, "loss": 1 / step, "reference_gain": 0.01, "grad_norm_base": 0.5})
        for step in range(10, 210, 10)
    )
    log += "\n" + "\n".join(json.dumps({"step": step, "validation_dino": step / 300}) for step in (0, 100, 200))
    engine.root.write(f"{surveys['train'].result.path}/log.jsonl", log.encode())
    result = surveys["evaluate"].result.path
    engine.root.write(f"{result}/metrics.json", json.dumps(metrics()).encode())
    save_sheet(engine.root, result, [f"A photo of a mug, number {n}" for n in range(14)])


def save_sheet(root: Root, folder: str, prompts: list[str]) -> None:
    rows = []
    for number, prompt in enumerate(prompts):
        root.write(f"{folder}/images/reference/mug-{number}-00.png", png((10 * number, 0, 0)))
        for method in METHODS:
            for image in (0, 1):
                file = f"images/{method}/mug-{number}-00-{image:02d}.png"
                root.write(f"{folder}/{file}", png((10 * number, 50, 0)))
                rows.append({"method": method, "subject": f"mug-{number}", "prompt": prompt, "file": file, "dino": 0.5})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    root.write(f"{folder}/scores.parquet", buffer.getvalue())


def test_a_whole_run_makes_a_whole_page(store):
    done = {"caption": StageDone(4, 0.2), "synthesize": StageDone(3, 125.0)}
    report = gather(store, "20261123-toy", done, config="name: story\n", when="23 November 2026")
    assert [stage.name for stage in report.stages] == list(store.graph.stages)
    segment = report.stages[2]
    assert segment.rows == report.stages[0].ok
    assert segment.rejected["blank"] == segment.rows - segment.ok > 0
    assert len(report.examples) == 6
    assert all(len(example.references) == 4 for example in report.examples)
    assert 0 < len(report.rejected) <= 6
    assert {name: len(points) for name, points in report.curves.items()} == dict.fromkeys(CURVES, 20) | {
        "validation_dino": 3
    }
    assert report.curves["validation_dino"] == [(0, 0.0), (100, 1 / 3), (200, 2 / 3)]
    assert len(report.sheet) == 14
    assert sum(subject.captions for subject in report.subjects) == report.stages[0].ok
    assert sum(subject.arrived for subject in report.subjects) == report.stages[4].ok
    assert report.subjects[0].captions == max(subject.captions for subject in report.subjects)

    page = Page(build_report(report))
    assert page.open == []
    for text in (
        "20261123-toy",
        "38%",
        "of the gap closed",
        "−3.3%",
        "2 min 05 s",
        "nothing to see",
        "BootPIG",
        "2 more captions",
    ):
        assert text in page.text, text
    assert all(subject.name in page.text for subject in report.subjects)
    drawn = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "chart"]
    assert drawn == [f"{CHARTS[name].title} by step" for name in CHARTS if name in report.curves]
    assert "3 made" in page.text
    assert "1 cached" in page.text
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 6 * 6 + len(report.rejected) + 14 * 4
    assert all(source.startswith("data:image/") for source in sources)


def test_the_page_needs_nothing_beside_it_and_runs_nothing(store):
    html = build_report(gather(store, "run", {}))
    page = Page(html)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"https?://|url\(", html)
    policy = next(
        attributes for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy["content"].startswith("default-src 'none'")
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert "prefers-color-scheme: dark" in html


def test_equal_stores_make_equal_pages(store):
    assert build_report(gather(store, "run", {})) == build_report(gather(store, "run", {}))


def test_text_from_anywhere_is_escaped():
    uri = data_uri(png())
    stage = StageFacts(
        name=HOSTILE,
        units=1,
        states={"complete": 0, "stale": 0, "failed": 1, "pending": 0},
        made=0,
        seconds=1,
        is_map=True,
        ok=1,
        rejected={HOSTILE: 1},
        meanings={HOSTILE: HOSTILE},
        failures={0: HOSTILE},
    )
    report = Report(
        name=HOSTILE,
        run_id=HOSTILE,
        when=HOSTILE,
        stages=[stage],
        examples=[Example(HOSTILE, uri, uri, (uri,))],
        rejected=[Rejected(HOSTILE, uri, HOSTILE)],
        subjects=[SubjectCount(HOSTILE, 1, 1)] * 30,
        metrics={**metrics(), "methods": {**metrics()["methods"], HOSTILE: metrics()["methods"]["real"]}},
        sheet=[SheetEntry(HOSTILE, (("reference", uri), ("trained", uri)), {"text_only": 0.4, "bootpig": 0.5})],
        config=HOSTILE,
    )
    html = build_report(report)
    page = Page(html)
    assert page.open == []
    assert "<script" not in html.lower()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")
    assert page.text.count("<script>alert") >= 10


def test_a_hostile_caption_in_a_shard_arrives_escaped():
    meta = json.dumps({"caption": HOSTILE, "object": "a mug"}).encode()
    shards = {
        "synthesize": write_shard([("a.json", meta), ("a.png", png())]),
        "segment": write_shard([("a.json", meta), ("a.mask.json", MASK), ("a.png", png())]),
        "augment": write_shard([("a.json", meta), ("a.reference0.png", png()), ("a.target.png", png())]),
    }
    examples = collect_examples(lambda stage, unit: shards[stage], [0])
    row = {"id": "a", "unit": 0, "status": "rejected", "reason": "blank"}
    rejected = collect_rejected(lambda stage, unit: shards[stage], [row])
    assert examples[0].caption == rejected[0].caption == HOSTILE
    html = build_report(Report("name", "run", examples=examples, rejected=rejected))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_an_empty_run_still_has_a_page(tmp_path, doubles):  # noqa: F811
    engine = Engine(config(tmp_path / "data"))
    report = gather(engine, "run", {})
    assert (report.examples, report.curves, report.metrics, report.sheet) == ([], {}, None, [])
    page = Page(build_report(report))
    assert page.open == []
    assert "4 pending" in page.text
    assert "Results" not in page.text


def test_damaged_files_cost_their_part_of_the_page_only(store):
    surveys = store.survey_all()
    folder = surveys["evaluate"].result.path
    store.root.write(f"{folder}/scores.parquet", b"broken")
    store.root.write(f"{surveys['train'].result.path}/log.jsonl", b'{"step": 1, "loss"')
    for marker in surveys["segment"].markers.values():
        store.root.write(f"{surveys['segment'].path}/{marker.payload}", b"x" * marker.payload_size)
    report = gather(store, "run", {})
    assert (report.sheet, report.curves, report.examples) == ([], {}, [])
    assert report.metrics is not None
    assert "Results" in build_report(report)


def test_examples_show_different_objects_first():
    members = []
    for index, noun in enumerate(["a mug", "a mug", "a mug", "a car", "a fish"]):
        members.append((f"{index}.json", json.dumps({"caption": f"{index} {noun}", "object": noun}).encode()))
        members.append((f"{index}.mask.json", MASK))
        members.append((f"{index}.png", png()))
        members.append((f"{index}.reference0.png", png()))
    shard = write_shard(members)
    shown = collect_examples(lambda stage, unit: shard, [0], count=4)
    assert [example.caption for example in shown] == ["0 a mug", "3 a car", "4 a fish", "1 a mug"]
    assert len(collect_examples(lambda stage, unit: shard, [0, 1], count=7)) == 7


def test_the_mask_is_seen_in_the_picture():
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    meta = json.dumps({"caption": "c", "object": "o"}).encode()
    shards = {
        name: write_shard([("a.json", meta), ("a.mask.json", encode_mask(mask)), ("a.png", png((255, 0, 0), 8))])
        for name in ("synthesize", "segment", "augment")
    }
    shown = decode(collect_examples(lambda stage, unit: shards[stage], [0])[0].mask)
    assert tuple(shown[0, 0]) == (255, 0, 0)
    assert shown[7, 0].min() > 180


def test_a_sheet_too_long_is_spread(tmp_path):
    root = Root(str(tmp_path))
    save_sheet(root, "result", [f"number {n}" for n in range(10)])
    assert [entry.caption for entry in read_sheet(root, "result", 5)] == [f"number {n}" for n in (0, 2, 4, 6, 8)]
    entry = read_sheet(root, "result", 5)[1]
    assert [title for title, _ in entry.pictures] == ["reference", "text only", "untrained", "trained"]
    assert read_sheet(root, "elsewhere") == []


def test_large_pictures_are_made_small():
    small, large = decode(data_uri(png(size=64))), decode(data_uri(png(size=512)))
    assert small.shape == (64, 64, 3)
    assert large.shape == (192, 192, 3)
    assert np.abs(large.astype(int) - (200, 30, 30)).max() < 6


def test_the_curve_spans_its_points():
    found = curve([(step, 2.0 - step / 1000) for step in range(0, 1001, 10)])
    assert found.raw.startswith("M0.00 ")
    assert [tick.label for tick in found.x] == ["0", "250", "500", "750", "1,000"]
    assert (found.y[0].at, found.y[-1].at) == (100, 0)
    assert found.last == pytest.approx(1.01)
    places = [tuple(map(float, pair.split())) for pair in found.raw[1:].split(" L")]
    assert places[-1][0] == 100
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in places)


def test_the_curves_are_one_picture():
    drawn = charts({"mfu": [(1, 0.5), (2, 0.4)], "loss": [(1, 0.5), (9, 0.4)], "validation_loss": [(1, 0.5)]})
    assert [chart.title for chart, _ in drawn] == ["Training loss", "MFU"], "one point is no curve"
    svg = ElementTree.fromstring(picture(drawn))
    assert svg.attrib["viewBox"] == "0 0 840 220"
    texts = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Training loss", "MFU", *(tick.label for _, line in drawn for tick in (*line.x, *line.y))} == set(texts)
    paths = {node.attrib["d"] for node in svg.iter("{http://www.w3.org/2000/svg}path")}
    assert {line.raw for _, line in drawn} | {line.smooth for _, line in drawn} <= paths


def test_the_curve_bears_odd_points():
    assert curve([]) is None
    assert curve([(1, 0.5)]) is None
    assert curve([(1, 0.5), (2, math.nan)]) is None
    assert curve([(1, 0.5), (1, 0.6)]) is None
    flat = curve([(1, 0.5), (2, 0.5)])
    assert flat.last == 0.5
    spike = curve([(0, 900.0), *((step, 1.0 + 0.1 * (step % 2)) for step in range(1, 3000))])
    assert len(spike.raw.split("L")) <= 400
    assert max(float(tick.label) for tick in spike.y) < 2


def test_the_axis_of_a_metric_spans_all_methods():
    rows = {row.method: row for row in result_rows(metrics())}
    dino = {method: row.cells[2] for method, row in rows.items()}
    assert dino["text_only"].begin == 0
    assert dino["real"].begin + dino["real"].width == pytest.approx(100, abs=0.02)
    assert dino["bootpig"].at == pytest.approx((0.55 - 0.36) / (0.83 - 0.36) * 100, abs=0.01)
    assert rows["real"].cells[0] is None


def test_the_terminal_table():
    console = Console(width=120, file=io.StringIO())
    console.print(results_table(metrics()))
    text = console.file.getvalue()
    line = next(line for line in text.splitlines() if "BootPIG " in line and "±" in line)
    assert "0.550 ± 0.040" in line
    assert "38%" in text
    assert "32 subjects, 64 pictures" in text
    without_gap = {**metrics(), "gap_closed_dino": None}
    console.print(results_table(without_gap))


def judged_metrics() -> dict:
    scores = {"concept": {"mean": 3.1, "ci95": [2.9, 3.3]}, "following": {"mean": 2.5, "ci95": [2.25, 2.75]}}
    methods = {"text_only": {"concept": None, "following": scores["following"]}, "bootpig": scores}
    agreement = {"concept": {"alpha": 0.61, "spearman": None, "people_alpha": None, "pictures": 12}}
    judge = {"model": "judge-1", "methods": methods, "missing": {"no_score": 2, "refusal": 1}, "agreement": agreement}
    return {**metrics(), "judge": judge}


def test_the_scores_of_a_judge_are_in_the_table_and_at_each_picture(store):
    folder = store.survey("evaluate").result.path
    store.root.write(f"{folder}/metrics.json", json.dumps(judged_metrics()).encode())
    rows = pq.read_table(io.BytesIO(store.root.read(f"{folder}/scores.parquet"))).to_pylist()
    # a refusal has no score
    given = {"text_only": (None, 4), "untrained": (1, 4), "bootpig": (3, 2)}
    judged = [
        {"file": row["file"], **dict(zip(("concept", "following"), given.get(row["method"], (0, 0)), strict=True))}
        for row in rows
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(judged), buffer)
    store.root.write(f"{folder}/judge.parquet", buffer.getvalue())
    report = gather(store, "run", {})
    assert report.sheet[0].judged == {
        "text only": "subject –, caption 4",
        "untrained": "subject 1, caption 4",
        "trained": "subject 3, caption 2",
    }
    page = Page(build_report(report))
    assert page.open == []
    assert page.text.count("subject 3, caption 2") == 14
    shown = ("judge: subject ↑", "judge: caption ↑", "3.100", "2.900 – 3.300", "judge-1 judges from 0 to 4; 3 scores")
    assert all(text in page.text for text in (*shown, "judge and people, subject: alpha 0.61, 12 pictures"))
    cells = {row.method: row.cells[3:] for row in result_rows(judged_metrics())}
    assert cells["bootpig"][0].mean == 3.1 and cells["text_only"][0] is None and cells["real"] == (None, None)
    console = Console(width=120, file=io.StringIO())
    console.print(results_table(judged_metrics()))
    assert "2.500 ± 0.250" in console.file.getvalue()

    store.root.write(f"{folder}/judge.parquet", b"broken")
    assert [entry.judged for entry in gather(store, "run", {}).sheet] == [{}] * 14


def test_durations():
    assert [duration(s) for s in (0.42, 41, 200, 7500)] == ["0.4 s", "41 s", "3 min 20 s", "2 h 05 min"]


def test_a_report_without_metrics_has_no_results(store):
    page = Page(build_report(replace(gather(store, "run", {}), metrics=None)))
    assert "of the gap closed" not in page.text
    assert "samples to train on" in page.text


def decode(uri: str) -> np.ndarray:
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))
