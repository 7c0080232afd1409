"""Finds near-duplicate pictures among many by their embeddings, with faiss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 50_000
"""Up to this many embeddings, each is compared with all that are kept. With more of them, only with those in the cells
near it, which misses hardly any at the cosines of near-duplicates. For 200,000 that takes a quarter of the time."""
PROBES = 32
"""Cells that are searched."""
ROUNDS = 10
"""Of k-means, which places the cells. Seeded by faiss, so that equal embeddings give equal cells."""
BLOCK = 4096
"""Embeddings that are compared with each other at a time."""


@dataclass(frozen=True)
class Nearest:
    """For each embedding, the most similar one of those before it that are kept."""

    cosines: NDArray[np.float32]
    """(N,). -inf where there is none."""
    partners: NDArray[np.int64]
    """(N,): its place. -1 where there is none."""


def nearest_kept(embeddings: NDArray[np.float32], limit: float) -> Nearest:
    """Compare each embedding with those before it that are kept, and keep it unless a cosine is above `limit`.

    Args:
        embeddings: N×d, in the order in which they are kept.
        limit: in (0, 1).
    """
    count = len(embeddings)
    cosines, partners = np.full(count, -np.inf, np.float32), np.full(count, -1, np.int64)
    if count < 2:
        return Nearest(cosines, partners)
    rows = np.ascontiguousarray(embeddings, np.float32)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    index = _index(rows)
    kept: NDArray[np.int64] = np.zeros(0, np.int64)
    for begin in range(0, count, BLOCK):
        block = rows[begin : begin + BLOCK]
        best, who = cosines[begin : begin + BLOCK], partners[begin : begin + BLOCK]  # views
        if len(kept):
            found, places = index.search(block, 1)
            seen = places[:, 0] >= 0
            best[seen], who[seen] = found[seen, 0], kept[places[seen, 0]]
        within = block @ block.T
        stays = np.zeros(len(block), np.bool_)
        for place in range(len(block)):
            before = np.flatnonzero(stays[:place])
            if len(before):
                nearest = before[within[place, before].argmax()]
                if within[place, nearest] > best[place]:
                    best[place], who[place] = within[place, nearest], begin + nearest
            stays[place] = best[place] <= limit
        if stays.any():
            index.add(block[stays])
            kept = np.concatenate([kept, begin + np.flatnonzero(stays)])
    return Nearest(cosines, partners)


def _index(rows: NDArray[np.float32]) -> Any:
    """An empty index for inner products with embeddings like `rows`, of length 1."""
    import faiss

    count, width = rows.shape
    if count <= EXACT:
        return faiss.IndexFlatIP(width)
    cells = int(4 * count**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES
    index.cp.niter = ROUNDS
    index.train(rows[:: max(1, count // (40 * cells))])
    return index
