"""Reads features of the drawn pictures of an evaluation, batch by batch. Each rank reads the pictures that it drew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bootpig.stages.engine.contract import FatalError
from bootpig.stages.engine.saved import Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.gallery import DrawnPictures, PictureFiles
from bootpig.stages.evaluate.measures.masks import MaskFiles, Masks
from bootpig.stages.evaluate.measures.measure import Features

OpenPieces = Callable[[], Pieces | None]
"""Opens the pieces of the unfinished result, as they are now."""


def read_share(
    feature: str,
    read: Callable[[str, list[int], PictureFiles], Features],
    pictures: Mapping[str, DrawnPictures],
    share: Share,
    open_pieces: OpenPieces,
) -> dict[str, Features]:
    """Read a feature of this rank's pictures in the batches in which they were drawn. The first rank collects the rest.

    So equal pictures have equal features for any number of ranks and any order of work, at equal batch size. A batch
    whose features are stored already is not read again.

    Args:
        feature: its name, see `measures.names`.
        read: called with a method, some of its rows, and their pictures.
        pictures: by method.

    Returns:
        Method → the features of each row with a picture. In other ranks than the first, nothing.

    Raises:
        FatalError: features of another rank are missing.
        RuntimeError: another rank has died.
    """
    pieces = open_pieces()
    found: dict[str, dict[int, Features]] = {method: {} for method in pictures}
    for method, drawn in pictures.items():
        for batch in drawn.own:
            if rows := drawn.finite(batch):
                name = _name(feature, method, batch)
                features = _stored(pieces, name, len(rows))
                if features is None:
                    features = read(method, rows, PictureFiles([drawn.files.paths[row] for row in rows]))
                    if pieces is not None:
                        pieces.put(name, features.pack())
                if not share.rank:
                    found[method][batch.start] = features
            share.tell(feature, 1)
    if share.rank:
        return {}
    if share.count > 1:
        share.wait(feature, sum(len(drawn.others) for drawn in pictures.values()))
        pieces = open_pieces()
        for method, drawn in pictures.items():
            for batch in drawn.others:
                if rows := drawn.finite(batch):
                    name = _name(feature, method, batch)
                    features = _stored(pieces, name, len(rows))
                    if features is None:
                        raise FatalError(f"evaluate: {name} of another process is missing; run again, which makes it")
                    found[method][batch.start] = features
    return {
        method: Features.join([batches[start] for start in sorted(batches)])
        for method, batches in found.items()
        if batches
    }


def find_masks(
    masks: Masks,
    pictures: Mapping[str, DrawnPictures],
    share: Share,
    open_pieces: OpenPieces,
) -> None:
    """Find the subjects in this rank's pictures; their masks go to `masks.files`, and to the pieces like features."""
    pieces = open_pieces()
    for method, drawn in pictures.items():
        for batch in drawn.own:
            if rows := drawn.finite(batch):
                name = _name("masks", method, batch)
                found = _unpacked(None if pieces is None else pieces.get(name), len(rows))
                if found is None:
                    found = masks.drawn([drawn.rows[row] for row in rows], [drawn.files.paths[row] for row in rows])
                    if pieces is not None:
                        pieces.put(name, _packed(found))
                for row, data in zip(rows, found, strict=True):
                    masks.files.put(MaskFiles.drawn_key(method, drawn.rows[row]), data)


def _packed(found: Sequence[bytes]) -> bytes:
    return save({f"{place:06d}": np.frombuffer(data, np.uint8) for place, data in enumerate(found)})


def _unpacked(data: bytes | None, count: int) -> list[bytes] | None:
    try:
        members = {} if data is None else load(data)
    except SafetensorError:
        return None
    return [members[name].tobytes() for name in sorted(members)] if len(members) == count else None


def _stored(pieces: Pieces | None, name: str, count: int) -> Features | None:
    data = None if pieces is None else pieces.get(name)
    try:
        features = None if data is None else Features.unpack(data)
    except (SafetensorError, KeyError, ValueError):
        return None
    return features if features is not None and len(features.reasons) == len(features.vectors) == count else None


def _name(work: str, method: str, batch: range) -> str:
    return f"{work}-{method}-{batch.start:06d}"
