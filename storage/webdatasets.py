"""Opens the shards of a stage as a webdataset pipeline, for example to train another model on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bootpig.storage.errors import StoreError
from bootpig.storage.parts import Marker, Parts
from bootpig.storage.root import Root
from bootpig.storage.shards import read_shard

if TYPE_CHECKING:
    import webdataset


def open_shards(
    root: Root,
    stage: str,
    fingerprint: str,
    units: Sequence[int],
    *,
    shuffle: int = 0,
    seed: int = 0,
    decode: bool = True,
) -> webdataset.DataPipeline:
    """A `webdataset.DataPipeline` over the `ok` samples of a stage.

    It yields one dict per sample: `__key__` (the sample's id), `__url__`, and the members by extension, such as
    `json`, `png`, `target.png`, `safetensors`. Shards are split among the nodes of `torch.distributed` and the workers
    of a `DataLoader`, so pass at least as many units as there are workers. Bytes are read through `root`, on any file
    system, and verified against their sha256. If the store is not a local folder, use a `DataLoader` with
    `multiprocessing_context="spawn"`: the clients of fsspec's remote file systems do not survive a fork. webdataset
    itself opens no URLs, because it would run the command in a `pipe:` URL.

    Args:
        root: the store.
        stage, fingerprint: the stage to read.
        units: the units to read, in this order if `shuffle` is 0. All must be complete.
        shuffle: size of the shuffle buffer in samples; the shards are shuffled too. 0 disables shuffling.
        seed: seed of the shuffling. Equal seeds give equal orders.
        decode: decode JSON to dicts, pictures to PIL and safetensors to dicts of CPU tensors. If false, members stay
            bytes.

    Raises:
        StoreError: a unit is not complete.
        CorruptPart: while iterating, if a shard is missing or altered.
    """
    import webdataset

    parts = Parts(root, stage, fingerprint)
    markers = parts.listing(units).markers
    if missing := [unit for unit in units if unit not in markers]:
        raise StoreError(f"{parts.folder}: units {missing[:8]} are not complete; run {stage} first")

    read = _Reader(root, stage, fingerprint, {unit: markers[unit] for unit in units})
    stages: list[Any] = [webdataset.SimpleShardList([str(unit) for unit in units])]
    stages += [webdataset.split_by_node, webdataset.split_by_worker]
    if shuffle:
        stages.append(webdataset.detshuffle(max(len(units), 1), initial=max(len(units), 1), seed=seed))
    stages.append(read)
    if shuffle:
        stages.append(webdataset.detshuffle(shuffle, initial=shuffle, seed=seed))
    if decode:
        stages.append(webdataset.decode(_safetensors, "pil"))
    return webdataset.DataPipeline(*stages)


class _Reader:
    """The pipeline step that reads the samples of each unit. Picklable, for spawned workers."""

    def __init__(self, root: Root, stage: str, fingerprint: str, markers: dict[int, Marker]) -> None:
        self.root = root
        self.stage = stage
        self.fingerprint = fingerprint
        self.markers = markers

    def __call__(self, sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        parts = Parts(self.root, self.stage, self.fingerprint)
        for source in sources:
            marker = self.markers[int(source["url"])]
            name = f"{parts.folder}/{marker.payload}"
            for key, members in read_shard(parts.payload(int(source["url"]), marker)):
                yield {"__key__": key, "__url__": name, **members}


def _safetensors(key: str, data: bytes) -> Any:
    """A webdataset decoder for safetensors files. Returns None for other files."""
    if not key.endswith("safetensors"):
        return None
    from safetensors.torch import load

    return load(data)
