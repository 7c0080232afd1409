"""Parameters of a flow run that are too large for Prefect: kept in the store, and passed by reference.

Prefect refuses a flow run whose parameters take more than 512 kB, as 15,000 objects of a caption grammar do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bootpig.flows.loading import dump_config, parse_config
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

LIMIT = 200_000
"""Bytes of JSON that are passed by value. Prefect's own limit counts its wrapping, too."""

FOLDER = "parameters"


class StoredParameters(BaseModel):
    """Where the configuration and the units of a flow run are kept."""

    model_config = ConfigDict(extra="forbid")

    root: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def by_value_or_reference(
    config: PipelineConfig, units: Sequence[int] | None, stand_in: PipelineConfig
) -> dict[str, Any]:
    """The flow's `config` and `units` where they are small, else `stored`, with `stand_in` under the run's name as
    `config`.

    Raises:
        StoreError: the store cannot be written.
    """
    chosen = None if units is None else list(units)
    text = json.dumps({"config": dump_config(config), "units": chosen}).encode()
    if len(text) <= LIMIT:
        return {"config": config} | ({} if chosen is None else {"units": chosen})
    sha256 = bytes_digest(text)
    Root(config.root).write(f"{FOLDER}/{sha256}.json", text)
    named = stand_in.model_copy(update={"name": config.name, "root": config.root})
    return {"config": named, "stored": StoredParameters(root=config.root, sha256=sha256)}


def opened(
    config: PipelineConfig, units: list[int] | None, stored: StoredParameters | None
) -> tuple[PipelineConfig, list[int] | None]:
    """The configuration and units of a flow run, wherever they are.

    Raises:
        InputError: what `stored` names is missing or altered.
    """
    if stored is None:
        return config, units
    path = f"{FOLDER}/{stored.sha256}.json"
    root = Root(stored.root)
    try:
        data = root.read(path)
    except FileNotFoundError:
        data = b""
    if bytes_digest(data) != stored.sha256:
        raise InputError(f"stored: {root.address(path)!r} → is missing or altered; start the run again")
    kept = parse_json(data)
    return parse_config(kept["config"], name="stored"), kept["units"]
