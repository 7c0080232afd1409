"""A sheet of pictures that a sweep drew: reference, text only, BootPIG. The subjects are not chosen."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from PIL import Image

from bootpig.storage.folders import Published, fetch_folder, read_manifest
from bootpig.storage.root import Root
from science.results import Results

COUNT = 12
SIDE, GAP = 96, 4
COLUMNS = 3
METHODS = ("text_only", "bootpig")


def sheet(results: Results, file: Path) -> bool:
    """Write a PNG of `COUNT` subjects, spread evenly by name, with their first captions: reference, text only,
    BootPIG.

    Returns:
        Whether there is a run to take them from: the first seed of the first cell of `ours`.
    """
    cell = next(iter(results.cells.get("ours", {}).values()), None)
    run = next(iter(cell.seeds.values()), None) if cell is not None else None
    if run is None:
        return False
    store = Root(run.root)
    published = read_manifest(store, run.folder.rpartition("/")[0])
    if published is None:
        return False
    with TemporaryDirectory() as scratch:
        table = _fetch(store, published, ["scores.parquet"], Path(scratch)) / "scores.parquet"
        rows = [row for row in pq.read_table(table).to_pylist() if row["method"] in METHODS]
        firsts: dict[tuple[str, str], str] = {}
        for row in rows:
            firsts.setdefault((row["subject"], row["method"]), row["file"])
        names = sorted({subject for subject, _ in firsts})
        chosen = [names[number * len(names) // COUNT] for number in range(min(COUNT, len(names)))]
        files = [[f"images/reference/{name}-00.png", *(firsts[name, method] for method in METHODS)] for name in chosen]
        folder = _fetch(store, published, [path for row in files for path in row], Path(scratch))
        width = COLUMNS * len(files[0]) * (SIDE + GAP) + (COLUMNS - 1) * 4 * GAP
        picture = Image.new("RGB", (width, -(-len(files) // COLUMNS) * (SIDE + GAP)), "white")
        for number, row in enumerate(files):
            left = number % COLUMNS * (len(row) * (SIDE + GAP) + 4 * GAP)
            for place, name in enumerate(row):
                with Image.open(folder / name) as drawn:
                    tile = drawn.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.paste(tile, (left + place * (SIDE + GAP), number // COLUMNS * (SIDE + GAP)))
        picture.save(file, optimize=True)
    return True


def _fetch(store: Root, published: Published, names: list[str], scratch: Path) -> Path:
    wanted = {name: published.files[name] for name in names}
    return fetch_folder(store, Published(published.path, wanted), scratch)
