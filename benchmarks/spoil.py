"""Spoils a fifth of a data set in known ways, and measures how many of the spoilt samples a selection finds.

    python -m benchmarks.spoil make toy --set root=./data --to ./spoilt
    bootpig run toy --set root=./spoilt --until select
    python -m benchmarks.spoil check toy --set root=./spoilt

`make` copies what a run has made until segment, and changes a share of segment's samples in the copy:

- caption: caption and object phrase are those of another sample with another subject;
- mask: the mask is that of another sample with another subject;
- blur: the picture is blurred with a Gaussian of a fortieth of its side.

Which sample is spoilt in what way is in `spoilt.json` of the copy. `make --share 0` gives the clean set.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
from PIL import ImageFilter

from bootpig.flows.loading import load_config
from bootpig.stages.engine.contract import MapStage, Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.shardio import pack, unpack
from bootpig.stages.pictures import decode_png, encode_png
from bootpig.stages.select.stage import DECISIONS
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

KINDS = ("caption", "mask", "blur")
BLUR = 1 / 40
TRUTH = "spoilt.json"


def make(engine: Engine, to: Path, share: float, seed: int = 0) -> dict[str, str]:
    """Write the spoilt copy of a store to a new folder. Returns sample → kind for the spoilt ones.

    Args:
        share: fraction of segment's `ok` samples of each unit, rounded. The kinds take turns.
    """
    assert engine.root.local is not None
    surveys = engine.survey_all(["segment"])
    for name, survey in surveys.items():
        if name != "segment":
            shutil.copytree(engine.root.local / survey.path, to / survey.path)
    segment, truth = surveys["segment"], {}
    columns = cast(type[MapStage], engine.graph.stages["segment"]).columns
    source, target = (Parts(root, "segment", segment.fingerprint) for root in (engine.root, Root(str(to))))
    target.describe(segment.identity)
    for unit, marker in sorted(segment.markers.items()):
        rng = random.Random(f"spoil/{seed}/{unit}")
        samples = unpack(marker.rows, source.payload(unit, marker))
        chosen = rng.sample(range(len(samples)), round(share * len(samples)))
        made = list(samples)
        for turn, place in enumerate(chosen):
            kind = KINDS[turn % len(KINDS)]
            others = [other for other in samples if other.meta["object"] != samples[place].meta["object"]]
            made[place] = _spoilt(samples[place], rng.choice(others), kind)
            truth[samples[place].id] = kind
        target.commit(unit, marker.rows, columns, pack(made), marker.input)
    (to / TRUTH).write_text(json.dumps(truth))
    return truth


def _spoilt(sample: Sample, other: Sample, kind: str) -> Sample:
    if kind == "caption":
        return replace(sample, meta=other.meta)
    if kind == "mask":
        return replace(sample, files={**sample.files, "mask.json": other.files["mask.json"]})
    picture = decode_png(sample.files["png"])
    blurred = picture.filter(ImageFilter.GaussianBlur(BLUR * max(picture.size)))
    return replace(sample, files={**sample.files, "png": encode_png(blurred)})


def check(engine: Engine) -> list[tuple[str, int, int]]:
    """How many samples of each kind, and of the good ones, the selection in the store drops: (kind, dropped, all)."""
    assert engine.root.local is not None
    truth = json.loads((engine.root.local / TRUTH).read_text())
    result = engine.survey("select").result
    if result is None:
        raise SystemExit("select is not complete; run bootpig run CONFIG --until select")
    rows = pq.read_table(engine.root.local / result.path / DECISIONS).to_pylist()
    total = Counter(truth.get(row["id"], "good") for row in rows)
    dropped = Counter(truth.get(row["id"], "good") for row in rows if not row["selected"])
    spoilt = sum(dropped[kind] for kind in KINDS), sum(total[kind] for kind in KINDS)
    found = [(kind, dropped[kind], total[kind]) for kind in KINDS]
    return [*found, ("spoilt", *spoilt), ("good", dropped["good"], total["good"])]


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927)."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spoil", description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(required=True, dest="action")
    for name in ("make", "check"):
        action = actions.add_parser(name)
        action.add_argument("config")
        action.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
        if name == "make":
            action.add_argument("--to", type=Path, required=True, help="a new folder")
            action.add_argument("--share", type=float, default=0.2)
            action.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    engine = Engine(load_config(asked.config, asked.set))
    if asked.action == "make":
        truth = make(engine, asked.to, asked.share, asked.seed)
        print(f"{len(truth)} samples are spoilt: {dict(Counter(truth.values()))}")
        return
    for kind, dropped, total in check(engine):
        if total:
            low, high = wilson(dropped, total)
            print(f"{kind:<8} {dropped} of {total} dropped, {dropped / total:.1%} [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main()
