"""Tables from bytes: read in the thread that asks, and nowhere in another way."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bootpig.storage.tables import read_table

ROOT = Path(__file__).parents[2]

COUNTS = """
import os, sys
import pyarrow.parquet  # starts a thread of its allocator
from bootpig.storage.tables import read_table
data = sys.stdin.buffer.read()
before = len(os.listdir("/proc/self/task"))
assert read_table(data).num_rows == 1000
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.fixture
def data() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: list(range(1000)) for name in "abcd"}), buffer, row_group_size=100)
    return buffer.getvalue()


def test_all_or_some_columns_are_read(data: bytes) -> None:
    assert read_table(data).column_names == ["a", "b", "c", "d"]
    assert read_table(data, ["b"]).to_pydict() == {"b": list(range(1000))}


@pytest.mark.parametrize("damaged", [b"", b"PAR1", b"no table" * 100])
def test_what_is_no_table_is_an_error_that_callers_know(damaged: bytes) -> None:
    with pytest.raises((pa.ArrowException, OSError)):
        read_table(damaged)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_is_left_that_could_abort_the_end_of_the_process(data: bytes) -> None:
    """A thread of Arrow that gives bytes back to Python while the interpreter ends aborts the process."""
    found = subprocess.run([sys.executable, "-c", COUNTS], input=data, capture_output=True, check=True)
    assert found.stdout == b"0\n"


def test_bytes_are_read_nowhere_in_threads() -> None:
    wrong = re.compile(r"pq\.read_table\((io\.BytesIO|pa\.BufferReader)")
    folders = ("flows", "models", "science", "stages", "storage")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert [str(file.relative_to(ROOT)) for file in files if wrong.search(file.read_text())] == []
