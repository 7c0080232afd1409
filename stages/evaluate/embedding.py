"""Embeds the drawn pictures of an evaluation. Each rank embeds the pictures that it drew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from bootpig.stages.engine.contract import FatalError, Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.gallery import DrawnPictures, PictureFiles
from bootpig.stages.evaluate.scoring import ImageEmbedder


def embed_share(
    embedder: ImageEmbedder,
    pictures: Mapping[str, DrawnPictures],
    share: Share,
    open_pieces: Callable[[], Pieces | None],
) -> dict[str, NDArray[np.float32]]:
    """Embed this rank's pictures, in the batches in which they were drawn. The first rank collects the rest.

    Args:
        pictures: by method.
        open_pieces: the pieces of the unfinished result, as they are now.

    Returns:
        Method → one vector per row with a picture, N×d. In other ranks, only those of their own batches, if any.

    Raises:
        FatalError: vectors of another rank are missing.
        RuntimeError: another rank has died.
    """
    work = type(embedder).__name__
    pieces = open_pieces() if share.rank else None
    found: dict[str, dict[int, NDArray[np.float32]]] = {method: {} for method in pictures}
    for method, drawn in pictures.items():
        for batch in drawn.own:
            if rows := drawn.finite(batch):
                vectors = embedder.images(PictureFiles([drawn.files.paths[row] for row in rows]))
                found[method][batch.start] = vectors
                if pieces is not None:
                    pieces.put(_name(work, method, batch), save({"vectors": vectors}))
            share.tell(work, 1)
    if not share.rank and share.count > 1:
        share.wait(work, sum(len(drawn.others) for drawn in pictures.values()))
        pieces = open_pieces()
        for method, drawn in pictures.items():
            for batch in drawn.others:
                if drawn.finite(batch):
                    name = _name(work, method, batch)
                    data = None if pieces is None else pieces.get(name)
                    if data is None:
                        raise FatalError(f"evaluate: {name} of another process is missing; run again, which makes it")
                    found[method][batch.start] = load(data)["vectors"]
    return {
        method: np.concatenate([batches[start] for start in sorted(batches)])
        for method, batches in found.items()
        if batches
    }


def _name(work: str, method: str, batch: range) -> str:
    return f"{work}-{method}-{batch.start:06d}"
