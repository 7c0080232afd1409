"""Reads the content of a report from the store: counts of every stage, a few samples, the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from bootpig.stages.caption.phrases import head_noun
from bootpig.stages.engine.contract import MapStage, Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.evaluate.results import JUDGED, METHOD_NAMES, judge_texts
from bootpig.stages.pictures import decode_cut_out
from bootpig.stages.report.pictures import UNREADABLE, Payload, data_uri, find_samples
from bootpig.stages.report.selection import SelectionFacts, selection_facts
from bootpig.stages.select.rules import Scored
from bootpig.stages.select.stage import FACTS
from bootpig.stages.train.curves import curves, read_log
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root
from bootpig.storage.shards import read_shard
from bootpig.storage.tables import read_table

EXAMPLES = 6
REJECTED = 6
SHEET_ROWS = 64
LOOK = 200
"""Samples searched for examples of different objects."""


@dataclass(frozen=True)
class StageDone:
    """What this run did in a stage."""

    made: int = 0
    """Units."""
    seconds: float = 0.0
    """Sum over its units."""


@dataclass(frozen=True)
class StageFacts:
    """One stage in the table of stages."""

    name: str
    units: int
    states: Mapping[str, int]
    """How many units are complete, stale, failed, pending."""
    made: int
    """Complete units that this run made; the others were there before."""
    seconds: float
    is_map: bool
    ok: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)
    """Unit → why its last attempt was not committed."""

    @property
    def rows(self) -> int:
        return self.ok + sum(self.rejected.values()) + sum(self.failed.values())


@dataclass(frozen=True)
class Example:
    """One sample after each stage; pictures are data URIs."""

    caption: str
    image: str
    mask: str
    """The picture, faded outside the mask."""
    references: tuple[str, ...]


@dataclass(frozen=True)
class Rejected:
    """A picture that a filter rejected."""

    caption: str
    image: str
    reason: str


@dataclass(frozen=True)
class SheetEntry:
    """One caption of one subject, drawn by each method."""

    caption: str
    pictures: tuple[tuple[str, str], ...]
    """(title, data URI)."""
    dino: Mapping[str, float]
    judged: Mapping[str, str] = field(default_factory=dict)
    """Title → the scores of a judge, in a few words."""


@dataclass(frozen=True)
class SubjectCount:
    """One subject (the head noun of object phrases) and its captions."""

    name: str
    captions: int
    """Captions that passed the caption stage."""
    arrived: int
    """How many of them are samples in encoded shards."""


@dataclass(frozen=True)
class Report:
    """The content of a report. The page leaves out what is empty or None."""

    name: str
    run_id: str
    when: str = ""
    stages: Sequence[StageFacts] = ()
    examples: Sequence[Example] = ()
    rejected: Sequence[Rejected] = ()
    subjects: Sequence[SubjectCount] = ()
    """Most frequent first."""
    selection: SelectionFacts | None = None
    """None without score."""
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) of the training's values, see `train.curves.CHARTS`."""
    metrics: Mapping[str, Any] | None = None
    sheet: Sequence[SheetEntry] = ()
    config: str = ""
    """The run's configuration as YAML."""


def gather(engine: Engine, run_id: str, done: Mapping[str, StageDone], *, config: str = "", when: str = "") -> Report:
    """Read the content of a report from the engine's store, as it is now.

    Args:
        done: what this run did, by stage; a stage that is missing did nothing.
        config: the YAML as run.
        when: the run's date, for the page's head.
    """
    surveys = engine.survey_all()
    root = engine.root

    def payload(stage: str, unit: int) -> bytes | Path:
        survey = surveys[stage]
        parts, marker = Parts(root, stage, survey.fingerprint), survey.markers[unit]
        # A local shard is read only as far as it is needed.
        return root.local / parts.folder / marker.payload if root.local else parts.payload(unit, marker)

    (painted,) = engine.graph.upstream["segment"]
    shown = [unit for unit in surveys["augment"].markers if unit in surveys[painted].markers]
    rejected_rows = [row for marker in surveys["segment"].markers.values() for row in marker.rows]
    evaluated = surveys["evaluate"]
    return Report(
        name=engine.config.name,
        run_id=run_id,
        when=when,
        stages=[
            stage_facts(engine.graph.stages[name], survey, done.get(name, StageDone()))
            for name, survey in surveys.items()
        ],
        examples=collect_examples(payload, shown, painted),
        rejected=collect_rejected(payload, rejected_rows, painted),
        subjects=count_subjects(
            (row for marker in surveys[engine.config.source].markers.values() for row in marker.rows),
            (row for marker in surveys["encode"].markers.values() for row in marker.rows),
        ),
        selection=read_selection(root, payload, surveys),
        curves=curves(read_log(root, surveys["train"])),
        metrics=None if evaluated.result is None else read_metrics(root, evaluated.result.path),
        sheet=[] if evaluated.result is None else read_sheet(root, evaluated.result.path),
        config=config,
    )


def stage_facts(stage: type[Stage], survey: StageSurvey, done: StageDone) -> StageFacts:
    """A stage's line, from its survey and what this run did."""
    rows = survey.rows()
    return StageFacts(
        name=survey.stage,
        units=len(survey.units),
        states={state: survey.count(state) for state in ("complete", "stale", "failed", "pending")},
        made=done.made,
        seconds=done.seconds,
        is_map=issubclass(stage, MapStage),
        ok=rows["ok"],
        rejected=rows["rejected"],
        failed=rows["failed"],
        meanings=stage.reasons if issubclass(stage, MapStage) else {},
        failures=survey.failures,
    )


def collect_examples(
    payload: Payload, units: Sequence[int], painted: str = "synthesize", count: int = EXAMPLES
) -> list[Example]:
    """Up to `count` samples, of different objects where possible, with picture, mask and references.

    Args:
        units: complete in `painted`, segment and augment; they are looked through in order.
        painted: the stage that segment reads.
    """
    examples: list[Example] = []
    try:
        for unit in units:
            chosen = _different_objects(read_shard(payload("augment", unit)), count - len(examples))
            images = find_samples(payload(painted, unit), chosen)
            cut_outs = find_samples(payload("segment", unit), chosen)
            for key, members in chosen.items():
                names = sorted((name for name in members if name.startswith("reference")), key=_number)
                examples.append(
                    Example(
                        caption=str(parse_json(members["json"])["caption"]),
                        image=data_uri(images[key]["png"]),
                        mask=_masked(decode_cut_out(cut_outs[key])),
                        references=tuple(data_uri(members[name]) for name in names),
                    )
                )
            if len(examples) >= count:
                break
    except UNREADABLE:
        pass
    return examples


def collect_rejected(
    payload: Payload, rows: Iterable[Mapping[str, Any]], painted: str = "synthesize", count: int = REJECTED
) -> list[Rejected]:
    """Up to `count` pictures that segment rejected, one reason after the other. `rows` are segment's, which reads the
    stage `painted`."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "rejected":
            by_reason.setdefault(row["reason"], []).append(row)
    turns = [group[turn] for turn in range(count) for group in by_reason.values() if turn < len(group)][:count]
    shown = []
    try:
        for unit in dict.fromkeys(row["unit"] for row in turns):
            reasons = {row["id"]: row["reason"] for row in turns if row["unit"] == unit}
            for key, members in find_samples(payload(painted, unit), reasons).items():
                caption = str(parse_json(members["json"])["caption"])
                shown.append(Rejected(caption, data_uri(members["png"]), reasons[key]))
    except UNREADABLE:
        pass
    return sorted(shown, key=lambda entry: entry.reason)


def count_subjects(captions: Iterable[Mapping[str, Any]], encoded: Iterable[Mapping[str, Any]]) -> list[SubjectCount]:
    """Captions and encoded samples per subject, from the rows of both stages."""
    arrived = {row["id"] for row in encoded if row["status"] == "ok"}
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for row in captions:
        if row["status"] == "ok":
            subject = head_noun(row["object"])
            counts[subject] += 1
            ends[subject] += row["id"] in arrived
    ordered = sorted(counts, key=lambda subject: (-counts[subject], subject))
    return [SubjectCount(subject, counts[subject], ends[subject]) for subject in ordered]


def read_selection(root: Root, payload: Payload, surveys: Mapping[str, StageSurvey]) -> SelectionFacts | None:
    """Scores, and what select made of them. None when nothing is scored yet, or the result is unreadable."""
    if "score" not in surveys or not surveys["score"].markers:
        return None
    select = surveys.get("select")
    try:
        facts = None
        if select is not None and select.result is not None:
            facts = parse_json(root.read(f"{select.result.path}/{FACTS}"))
        scored = Scored.of_rows(row for _, marker in sorted(surveys["score"].markers.items()) for row in marker.rows)
        return selection_facts(payload, scored, facts)
    except UNREADABLE:
        return None


def read_metrics(root: Root, folder: str) -> dict[str, Any] | None:
    """The `metrics.json` of an evaluate result; None when it is missing or unreadable."""
    try:
        metrics: dict[str, Any] = parse_json(root.read(f"{folder}/metrics.json"))
        return metrics if "methods" in metrics else None
    except UNREADABLE:
        return None


def read_sheet(root: Root, folder: str, count: int = SHEET_ROWS) -> list[SheetEntry]:
    """The first picture of every caption by every method, at most `count` captions, evenly spread, not selected."""
    titles = {"text_only": "text only", "untrained": "untrained", "bootpig": "trained"}
    try:
        rows = read_table(root.read(f"{folder}/scores.parquet")).to_pylist()
        rivals = {name: name for name in dict.fromkeys(row["method"] for row in rows) if name not in METHOD_NAMES}
        titles |= rivals
        rows = [row for row in rows if row["method"] in titles and row["file"].endswith("-00.png")]
        rows = [row for row in rows if row.get("status", "ok") == "ok"]
        captions: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            captions.setdefault((row["subject"], row["prompt"]), {})[row["method"]] = row
        keys = [key for key, drawn in captions.items() if drawn.keys() == titles.keys()]
        shown = [keys[index * len(keys) // min(count, len(keys))] for index in range(min(count, len(keys)))]
        judged = _read_judged(root, folder)
        entries = []
        for subject, prompt in shown:
            by_method = captions[subject, prompt]
            files = {"reference": f"images/reference/{subject}-00.png"}
            files |= {title: by_method[method]["file"] for method, title in titles.items()}
            pictures = tuple((title, data_uri(root.read(f"{folder}/{file}"))) for title, file in files.items())
            entries.append(
                SheetEntry(
                    prompt,
                    pictures,
                    {m: v for m in (*METHOD_NAMES, *rivals) if (v := by_method.get(m, {}).get("dino")) is not None},
                    {title: judged[file] for title, file in files.items() if file in judged},
                )
            )
        return entries
    except UNREADABLE:
        return []


def _read_judged(root: Root, folder: str) -> dict[str, str]:
    try:
        return judge_texts(root.read(f"{folder}/{JUDGED}"))
    except UNREADABLE:  # most evaluations have no judge
        return {}


def _masked(image: Image.Image) -> str:
    pale = Image.blend(
        ImageOps.grayscale(image.convert("RGB")).convert("RGB"), Image.new("RGB", image.size, "white"), 0.75
    )
    return data_uri(Image.composite(image.convert("RGB"), pale, image.getchannel("A")))


def _different_objects(samples: Iterator[tuple[str, dict[str, bytes]]], count: int) -> dict[str, dict[str, bytes]]:
    """`count` of the first samples: the first of each object, then others."""
    firsts: dict[str, dict[str, bytes]] = {}
    others: dict[str, dict[str, bytes]] = {}
    seen = set()
    for looked, (key, members) in enumerate(samples):
        noun = parse_json(members["json"]).get("object")
        if noun not in seen:
            seen.add(noun)
            firsts[key] = members
        elif len(others) < count:
            others[key] = members
        if len(firsts) >= count or looked >= LOOK:
            break
    return dict(list({**firsts, **others}.items())[:count])


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 0)
