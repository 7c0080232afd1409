"""Exports a data set: streams its samples into shards, from where an earlier attempt stopped, then writes the card."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bootpig.stages.engine.contract import InputError, Progress
from bootpig.stages.export.card import card
from bootpig.stages.export.croissant import croissant_json
from bootpig.stages.export.facts import gather
from bootpig.stages.export.formats import FORMATS, Shard, shard_maker
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.repository import FORM, LARGEST_FILE, RepositoryTarget
from bootpig.stages.export.samples import sample_pictures
from bootpig.stages.export.splits import Splits
from bootpig.stages.export.target import FolderTarget, ShardFacts, Target
from bootpig.storage.errors import NO_SPACE, StoreFull
from bootpig.storage.fingerprint import digest
from bootpig.storage.hub import PROTOCOL

LAYOUT = 2
"""Must be increased when the same data set would give other files."""

SHARD_BYTES = 500_000_000
SMALLEST_SHARD = 1_000
LARGEST_SHARD = 100_000_000_000


@dataclass(frozen=True)
class Options:
    """How to export.

    Raises:
        InputError: an unknown format, or a size out of bounds.
    """

    format: str = "parquet"
    splits: Splits = field(default_factory=Splits)
    shard_bytes: int = SHARD_BYTES
    """A shard is closed before the sample that would make it larger."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"--format: {self.format!r} → choose from {', '.join(FORMATS)}")
        if not SMALLEST_SHARD <= self.shard_bytes <= LARGEST_SHARD:
            raise InputError(f"--shard-bytes: {self.shard_bytes} → must be from {SMALLEST_SHARD} to {LARGEST_SHARD}")


def open_target(data: DataSet, url: str, options: Options, private: bool = False) -> Target:
    """The place for an export of `data`. Changes nothing there.

    Args:
        data: the data set.
        url: a folder, or `hf://datasets/owner/name`.
        options: how to export.
        private: of a repository: only its owner may read it.

    Raises:
        InputError, StoreError: the place cannot be written, or holds something else.
    """
    facts = {
        "layout": LAYOUT,
        "format": options.format,
        "splits": [[name, fraction] for name, fraction in options.splits.fractions],
        "shard_bytes": options.shard_bytes,
    }
    identity = digest({**facts, **data.identity})
    about = {"run": data.name, **facts}
    if not url.startswith(PROTOCOL):
        if private:
            raise InputError(f"--private: → is for a repository, not for {url!r}; leave it out, or give {FORM}")
        return FolderTarget(url, identity, about)
    if options.shard_bytes > LARGEST_FILE:
        raise InputError(f"--shard-bytes: {options.shard_bytes} → the hub takes files of at most {LARGEST_FILE} bytes")
    return RepositoryTarget(url, identity, about, private)


def export(data: DataSet, target: Target, options: Options, progress: Progress) -> None:
    """Write what is missing of the export, then the card. Does nothing if it is complete.

    Samples stay in the order of the data set, within their split. One unit of the store is in memory at a time.

    Raises:
        CorruptPart: a unit of the data set is damaged.
        StoreError: the target cannot be written. Finished shards are kept.
    """
    if target.done:
        return
    with target.held() as scratch:
        if target.done:
            return
        _Writer(data, target, options, scratch).run(progress)
        name = str(target.about["run"])
        facts = gather(data)
        pictures = sample_pictures(data)
        captions = [sample.caption for sample in pictures]
        texts = {
            "README.md": card(data, facts, target.shards, options.format, name, captions, target.place),
            "croissant.json": croissant_json(data, facts, target.shards, options.format, name),
        }
        files = {f"samples/{number}.png": sample.png for number, sample in enumerate(pictures)}
        target.check()
        target.finish({**files, **{file: text.encode() for file, text in texts.items()}})


class _Writer:
    """Distributes samples to the open shard of each split."""

    def __init__(self, data: DataSet, target: Target, options: Options, scratch: Path) -> None:
        self.data = data
        self.target = target
        self.options = options
        self.scratch = scratch
        self.start = shard_maker(options.format, target.root, scratch, data)
        self.open: dict[str, Shard] = {}
        self.end: dict[str, int] = {}
        """Split → position in the data set after its last sample; for finished shards, where to go on."""
        for split in options.splits.names:
            self.end[split] = max((shard.end for shard in target.of(split)), default=0)

    def run(self, progress: Progress) -> None:
        try:
            self._write(progress)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StoreFull(
                    f"--to: {self.target.url!r}: no space left for unfinished shards in {str(self.scratch)!r}; free "
                    "some and run again, finished shards are kept"
                ) from None
            raise
        finally:
            for shard in self.open.values():
                with suppress(OSError):  # a full disk takes no footer
                    shard.drop()

    def _write(self, progress: Progress) -> None:
        of = self.options.splits.of
        resumed = dict(self.end)
        position, total = 0, self.data.total
        for unit in self.data.units:
            splits = [of(key) for key in self.data.ids(unit)]
            left = [i for i, split in enumerate(splits) if position + i >= resumed[split]]
            if left:
                for i, record in enumerate(self.data.records(unit, left[0]), left[0]):
                    split = splits[i]
                    if position + i < resumed[split]:
                        continue
                    shard = self.open.get(split)
                    if shard is not None and not shard.takes(record, self.options.shard_bytes):
                        self._finish(split, self.end[split])
                        shard = None
                    if shard is None:
                        shard = self.open[split] = self.start(split, len(self.target.of(split)))
                    shard.add(record)
                    self.end[split] = position + i + 1
                    progress(position + i + 1, total, "")
            position += len(splits)
            progress(position, total, "")
        for split in list(self.open):
            self._finish(split, total)

    def _finish(self, split: str, end: int) -> None:
        self.target.check()
        shard = self.open[split]
        facts = shard.finish()
        del self.open[split]
        self.target.add(ShardFacts(facts.name, split, shard.samples, end, facts.bytes, facts.sha256, facts.size))
