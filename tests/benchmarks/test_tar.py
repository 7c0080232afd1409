"""The two tar codecs that are timed do the same; how fast they are is no concern of a test."""

from __future__ import annotations

from benchmarks import tar
from bootpig.storage.shards import read_shard, write_shard


def test_both_ways_give_the_same_bytes_and_samples() -> None:
    content = tar.members(64)
    data = write_shard(content)
    assert data == tar.write_by_tarfile(content)
    assert list(read_shard(data)) == tar.read_by_tarfile(data)
    assert len(tar.read_by_tarfile(data)) == tar.SAMPLES


def test_what_is_measured() -> None:
    for found in (tar.write(64), tar.read(64)):
        assert found.keys() == {"ratio", "value", "baseline", "unit"} and float(found["ratio"]) > 0
