"""The card of an export: README.md with the YAML header that the hub and `datasets` read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from bootpig.models.pipelines.card import licence_header
from bootpig.stages.export.facts import Facts
from bootpig.stages.export.formats import shard_pattern, webdataset_features
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.target import FOLDER, ShardFacts
from bootpig.stages.plain_text import markdown

PAPER = "https://arxiv.org/abs/2401.13974"

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_SIZES |= {100_000_000: "10M<n<100M", 1_000_000_000: "100M<n<1B"}


def card(
    data: DataSet,
    facts: Facts,
    shards: Sequence[ShardFacts],
    format: str,
    name: str,
    captions: Sequence[str],
    place: str,
) -> str:
    """The card as Markdown.

    Args:
        data: the data set.
        facts: its yields, scores and licences.
        shards: the finished shards.
        format: one of `FORMATS`.
        name: the run, as in `export.json`.
        captions: of the sample pictures `samples/0.png`, ….
        place: `owner/name` of its repository, or `FOLDER`.
    """
    samples = sum(shard.samples for shard in shards)
    head: dict[str, Any] = {
        "pretty_name": f"BootPIG data set {data.config.name}",
        "task_categories": ["text-to-image", "image-to-image"],
        "size_categories": [next((size for bound, size in _SIZES.items() if samples < bound), "n>1T")],
        "tags": ["bootpig", "subject-driven-generation", *(["synthetic"] if is_drawn(data) else [])],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": shard_pattern(format, split)} for split in split_names(shards)],
            }
        ],
    }
    head |= licence_header(facts.licence)
    if format == "webdataset":  # else `datasets` takes the first five samples for all
        head["dataset_info"] = {"features": webdataset_features(data)}
    header = yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()
    return "\n".join(["---", header, "---", "", *_text(data, facts, shards, format, name, captions, place)]) + "\n"


def split_names(shards: Iterable[ShardFacts]) -> list[str]:
    """The splits with samples, `train` first. The hub refuses a split without files."""
    return sorted({shard.split for shard in shards}, key=lambda split: (split != "train", split))


def _text(
    data: DataSet,
    facts: Facts,
    shards: Sequence[ShardFacts],
    format: str,
    name: str,
    captions: Sequence[str],
    place: str,
) -> Iterator[str]:
    yield f"# BootPIG data set {markdown(data.config.name)}"
    yield ""
    yield "Pictures of one subject each, with the subject's mask, a caption, and references: the subject cut out,"
    yield "changed at random and placed on white. Training data for subject-driven generation as in"
    origin = "The pictures were drawn by a model." if is_drawn(data) else "The pictures were given."
    yield f"[BootPIG]({PAPER}). {origin}"
    yield ""
    yield from _table(
        ("split", "samples", "shards", "bytes"),
        (
            (split, *(f"{number:,}" for number in _counts(shard for shard in shards if shard.split == split)))
            for split in split_names(shards)
        ),
    )
    if captions:
        yield ""
        yield "## Samples"
        yield ""
        yield "The first ones, not selected: the picture, the subject by its mask, references."
        yield ""
        rows = ((f"![](samples/{number}.png)", markdown(caption)) for number, caption in enumerate(captions))
        yield from _table(("picture", "caption"), rows)
    yield ""
    yield "## How to load it"
    yield ""
    if place == FOLDER:
        yield "`FOLDER` is this folder, or the id of the repository that it was uploaded to."
        yield ""
    yield "```python"
    yield from _loading(shards, format, place)
    yield "```"
    yield ""
    yield "## Columns"
    yield ""
    yield from _table(("name", "what it is"), ((f"`{column}`", what) for column, what in _columns(data, format)))
    yield ""
    yield "A sample's split depends only on its id, so samples do not move between splits when the data set grows."
    yield ""
    yield "## How it was made"
    yield ""
    yield f"Run `{name}` of the BootPIG pipeline. Each stage reads the samples that the one before it accepted."
    yield ""
    yield from _table(
        ("stage", "rows", "accepted", "rejected", "failed"),
        (
            (
                line.stage,
                f"{line.rows:,}",
                f"{line.ok:,}",
                ", ".join(f"{reason} {count:,}" for reason, count in line.rejected.items()) or "–",
                f"{line.failed:,}",
            )
            for line in facts.yields
        ),
    )
    yield ""
    yield from _table(
        ("stage", "model", "commit or digest", "licence"),
        (
            (
                f"{model.stage}.{model.role}",
                markdown(model.source),
                f"`{model.identity[:12] or '–'}`",
                markdown(facts.licences[model] or "unknown; see the model's own card"),
            )
            for model in data.models
        ),
    )
    if facts.scores:
        yield ""
        yield "## Scores"
        yield ""
        yield "Over the exported samples. The histogram has ten equal bins from lowest to highest."
        yield ""
        rows_of_scores = (
            (f"`{s.name}`", f"{s.count:,}", f"{s.low:.3g}", f"{s.median:.3g}", f"{s.high:.3g}", s.bars)
            for s in facts.scores
        )
        yield from _table(("score", "samples", "lowest", "median", "highest", "histogram"), rows_of_scores)
    yield ""
    yield "## Licence"
    yield ""
    known = f"`{facts.licence}`" if facts.licence else "not known here"
    whose = "of the model that drew the pictures" if is_drawn(data) else "of the pictures"
    yield f"The licence {whose} is {known}. The licences of the other models are in"
    yield "the table above; whether they extend to what a model makes is for you to check."


def is_drawn(data: DataSet) -> bool:
    """Whether a model drew the pictures."""
    return "synthesize" in data.markers


def _counts(shards: Iterable[ShardFacts]) -> tuple[int, int, int]:
    found = list(shards)
    return sum(shard.samples for shard in found), len(found), sum(shard.size for shard in found)


def _loading(shards: Sequence[ShardFacts], format: str, place: str) -> Iterator[str]:
    split = split_names(shards)[0]
    names = sorted(shard.name for shard in shards if shard.split == split)
    address = place if place == FOLDER else f"hf://datasets/{place}"
    yield "from datasets import load_dataset"
    yield ""
    yield f'data = load_dataset("{place}", split="{split}")'
    if format == "parquet":
        yield ""
        yield "import pandas"
        yield ""
        yield f'rows = pandas.read_parquet("{address}/{names[0]}")'
    if format == "webdataset" and place == FOLDER:
        yield ""
        yield "import webdataset"
        yield ""
        yield f'urls = "{place}/{names[0][:-9]}{{00000..{len(names) - 1:05d}}}.tar"'
        yield 'data = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")'


def _columns(data: DataSet, format: str) -> Iterator[tuple[str, str]]:
    pictures = {
        "parquet": ("image", "mask", "references"),
        "folder": ("image", "mask", "references"),
        "webdataset": ("png", "mask.png", "reference.0.png`, `reference.1.png`, `…"),
    }[format]
    yield pictures[0], "the picture, RGB"
    yield pictures[1], "the subject's mask, greyscale, of the picture's size; 255 is the subject"
    yield pictures[2], "the subject on white, RGB"
    if data.has_views:
        views, masks = {
            "parquet": ("views", "view_masks"),
            "folder": ("views", "view_masks"),
            "webdataset": ("view.0.png`, `view.1.png`, `…", "view.0.mask.png`, `…"),
        }[format]
        yield views, "the subject again in other scenes, RGB; a sample may have none"
        yield masks, "the masks of the views, in the same order"
        yield "view_scenes", "the scene of each view"
        yield "view_identity", "how similar the subject of each view is to that of the picture: the cosine by DINO"
    yield "id", "the sample's id"
    yield "caption", "what the picture was drawn from" if is_drawn(data) else "what the picture shows"
    yield "object", "the part of the caption that names the subject"
    yield "seed", "the run's seed; all random draws for a sample are made from it and the sample's id"
    for column in data.columns:
        yield column.name, f"`{column.column}` of the {column.stage} stage"
    for model in data.models:
        yield model.name, f"the {model.role} of the {model.stage} stage, with its commit or digest"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
