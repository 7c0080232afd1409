"""Shards: webdataset tar files whose bytes depend on their members alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from storage.errors import CorruptPart


def write_shard(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of `(<sample id>.<extension>, bytes)` in the order given.

    Time, owner and mode are fixed, which webdataset's own TarWriter stamps with the clock, so equal members give
    equal bytes.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 0, 0o644
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def read_shard(source: bytes | str | Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard in order: `(sample id, {extension: bytes})`.

    Nothing is unpacked to disk, so a member's path cannot lead anywhere.

    Raises:
        CorruptPart: the archive is damaged.
    """
    import webdataset  # imports torch, which a reader of statistics can do without

    opened = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115 - closed below
    with opened as stream:
        try:
            files = webdataset.tariterators.tar_file_expander([{"url": "shard", "stream": stream}])
            for sample in webdataset.tariterators.group_by_keys(files):
                yield sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}
        except tarfile.TarError as error:
            raise CorruptPart(f"shard: not a readable tar archive ({error})") from None
