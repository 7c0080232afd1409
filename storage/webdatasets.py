"""Opens the shards of a stage as a webdataset pipeline, to train something else on them."""

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
    of a `DataLoader`, so give at least as many units as there are workers. Bytes are read through `root`, whatever
    file system that is, and checked against their sha256. Where the store is not a local folder, give the `DataLoader`
    `multiprocessing_context="spawn"`: the clients of fsspec's remote file systems do not survive a fork. webdataset
    opens no URL itself: it would run the command of a `pipe:` URL.

    Args:
        root: the store.
        stage, fingerprint: which stage.
        units: the units to read, in this order if `shuffle` is 0. Each has to be complete.
        shuffle: samples in the shuffle buffer; also shuffles the shards. 0: no shuffling.
        seed: of the shuffling. Equal seeds give equal orders.
        decode: JSON to dicts, pictures to PIL, safetensors to dicts of CPU tensors; else members stay bytes.

    Raises:
        StoreError: a unit is not complete.
        CorruptPart: while iterating, a shard is missing or altered.
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
    """The pipeline's step from unit numbers to samples. It can be pickled, for workers that are spawned."""

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
    """A webdataset decoder: None for what it does not know."""
    if not key.endswith("safetensors"):
        return None
    from safetensors.torch import load

    return load(data)
