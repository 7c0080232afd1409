"""Cuts the subjects of a benchmark out of their references, once: later evaluations find the masks in the store."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.saved import Pieces
from bootpig.stages.engine.slices import Slices
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.picture_files.reader import read_picture
from bootpig.stages.pictures import decode_mask, encode_png
from bootpig.stages.segment.stage import Segment
from bootpig.storage.fingerprint import digest, file_digest
from bootpig.storage.jsonio import parse_json

_LOG = logging.getLogger(__name__)

_SHOWN = 20
"""Maximum number of warnings about references that were not cut out."""


@dataclass(frozen=True)
class CutOut:
    """What the segment models made of one reference."""

    status: str
    """`ok`, `rejected` or `failed`."""
    reason: str
    """Of segment, such as `no_detection`. Empty if it was cut out."""
    score: float | None
    """Of the detector."""
    mask: Mapping[str, Any] | None
    """Run lengths, see `encode_mask`. None if it was not cut out."""

    def apply(self, picture: Image.Image) -> Image.Image:
        """The RGB `picture` with the mask as alpha; unchanged if it was not cut out."""
        if self.mask is None:
            return picture
        cut = picture.convert("RGB")
        cut.putalpha(Image.fromarray(decode_mask(json.dumps(self.mask).encode(), cut.height, cut.width)))
        return cut


def cut_out_references(subjects: Sequence[Subject], stage: Segment, kept: Pieces | None) -> dict[Path, CutOut]:
    """Cut out every reference that is a photo. Those with transparency are cut out already, and styles are no things
    to cut out.

    Args:
        stage: its models and filters, those for training data turned off (see `of_photos`). Not set up.
        kept: the masks of earlier evaluations, by content of the picture and identity of the models. None: not kept.

    Raises:
        InputError, ModelError: a picture or a model cannot be used.
        FatalError: memory runs out.
    """
    made_by = {
        "config": stage.config.hashed(),
        "models": {name: source.as_json() for name, source in stage.models().items()},
        "version": stage.version,
    }
    found: dict[Path, CutOut] = {}
    left: dict[Path, tuple[str, Sample]] = {}
    for subject in subjects:
        for path in subject.references if subject.kind != "style" else ():
            name = digest({**made_by, "picture": file_digest(path), "phrase": subject.object})[:32]
            known = None if kept is None else kept.get(name)
            if known is not None:
                found[path] = CutOut(**parse_json(known))
                continue
            picture = read_picture(path, f"{subject.section}.subjects")
            if picture.mode == "RGB":
                left[path] = name, Sample(name, 0, {"object": subject.object}, {"png": encode_png(picture)})
    if left:
        stage.setup()
        try:
            for path, (name, sample) in left.items():
                (judged,) = Slices(stage, 0).process(stage, [sample])
                mask = judged.files.get("mask.json") if judged.status == "ok" else None
                score = judged.columns.get("score")
                made = CutOut(judged.status, judged.reason, score, None if mask is None else parse_json(mask))
                found[path] = made
                if kept is not None and made.status != "failed":
                    kept.put(name, json.dumps(asdict(made)).encode())
        finally:
            stage.teardown()
    return found


def chosen_references(subject: Subject, cut: Mapping[Path, CutOut]) -> tuple[Path, ...]:
    """The references of a subject that are used: those that were cut out, or all of them if none was."""
    usable = tuple(path for path in subject.references if path not in cut or cut[path].mask is not None)
    return usable or subject.references


def write_rows(workdir: Path, subjects: Sequence[Subject], cut: Mapping[Path, CutOut]) -> None:
    """Write `reference_rows` to `references.json` in `workdir`."""
    rows = reference_rows(subjects, cut)
    (workdir / "references.json").write_text(f"{json.dumps(rows, indent=2)}\n", encoding="utf-8")


def reference_rows(subjects: Sequence[Subject], cut: Mapping[Path, CutOut]) -> list[dict[str, Any]]:
    """One row per reference that should have been cut out: subject, file, status, reason, score, and whether it is
    used. Logs a line for each that was not cut out."""
    rows = []
    for subject in subjects:
        used = chosen_references(subject, cut)
        for path in subject.references:
            if (made := cut.get(path)) is None:
                continue
            facts = {"status": made.status, "reason": made.reason, "score": made.score, "used": path in used}
            rows.append({"subject": subject.name, "file": path.name, **facts})
    lost = [row for row in rows if row["status"] != "ok"]
    for row in lost[:_SHOWN]:
        fate = "used whole, with its background" if row["used"] else "left out"
        _LOG.warning("evaluate: reference %s/%s: %s → %s", row["subject"], row["file"], row["reason"], fate)
    if len(lost) > _SHOWN:
        _LOG.warning("evaluate: %d more references were not cut out, see references.json", len(lost) - _SHOWN)
    return rows
