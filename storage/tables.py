"""Reads tables in Parquet from bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file, with all columns or only the given ones. Reads in this thread alone.

    `pq.read_table` sets up a dataset around the file, which takes as long again, and reads in threads of Arrow. One of
    them may give the bytes back to Python while the interpreter ends, which aborts the process after its work is done.

    Raises:
        pa.ArrowException, OSError: `data` is no such file.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
