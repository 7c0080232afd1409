"""The select stage: turns scores into the list of samples to train on. A changed threshold costs seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bootpig.stages.engine.contract import Progress, ReduceInput, ReduceStage
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.score.config import Embedding
from bootpig.stages.select.config import SelectConfig
from bootpig.stages.select.duplicates import Nearest, nearest_kept
from bootpig.stages.select.rules import Flags, Outcome, Scored, choose
from bootpig.storage.errors import CorruptPart
from bootpig.storage.jsonio import parse_json
from bootpig.storage.shards import read_shard

SELECTED = "selected.json"
"""The ids of the selected samples in the order of the data set, a JSON list."""
FACTS = "rules.json"
"""What each rule keeps and drops, see `Outcome.facts`."""
DECISIONS = "decisions.parquet"
"""For each scored sample, the rules that drop it."""


class Select(ReduceStage):
    """Reads score's rows, and its embeddings for near-duplicates. Writes `SELECTED`, `FACTS` and `DECISIONS`."""

    name = "select"
    upstream = ("score",)
    config_class = SelectConfig
    config: SelectConfig
    identity_prefix: ClassVar[str] = SELECTED

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        """Select. A selection may leave nothing: the run then ends before the next stage."""
        outcome = self.outcome(data, progress)
        (workdir / SELECTED).write_text(f"{json.dumps(outcome.ids, separators=(',', ':'))}\n", encoding="utf-8")
        (workdir / FACTS).write_text(f"{json.dumps(outcome.facts(), indent=2)}\n", encoding="utf-8")
        pq.write_table(decisions(outcome), workdir / DECISIONS, compression="zstd")

    def outcome(self, data: ReduceInput, progress: Progress) -> Outcome:
        """Apply the rules to score's units. Reads embeddings only with `max_similarity`.

        Raises:
            CorruptPart: a shard with embeddings is damaged.
        """
        scored = Scored.of_rows(row for unit in data.units for row in data.rows(unit.unit))
        return choose(scored, self.config, self.seed, _comparison(data, scored, self.config, progress))


def decisions(outcome: Outcome) -> pa.Table:
    """One row per scored sample: id, unit, whether it is selected, and the rules that drop it."""
    names = [rule.name for rule in outcome.rules]
    hits = np.array([rule.dropped for rule in outcome.rules]).reshape(len(names), len(outcome.scored))
    return pa.table(
        {
            "id": pa.array(outcome.scored.ids, pa.string()),
            "unit": pa.array(outcome.scored.units, pa.int64()),
            "selected": pa.array(outcome.kept.tolist(), pa.bool_()),
            "dropped_by": pa.array(
                [[names[rule] for rule in np.flatnonzero(column)] for column in hits.T], pa.list_(pa.string())
            ),
        }
    )


def read_selected(result: Path) -> list[str]:
    """The ids in a result of select."""
    return [str(key) for key in parse_json((result / SELECTED).read_bytes())]


def _comparison(
    data: ReduceInput, scored: Scored, config: SelectConfig, progress: Progress
) -> Callable[[Flags], Nearest]:
    def compare(kept: Flags) -> Nearest:
        assert config.max_similarity is not None
        wanted = {scored.ids[place] for place in np.flatnonzero(kept).tolist()}
        embeddings = read_embeddings(data, wanted, config.similarity, progress)
        return nearest_kept(embeddings, config.max_similarity)

    return compare


def read_embeddings(data: ReduceInput, wanted: Set[str], name: Embedding, progress: Progress) -> NDArray[np.float32]:
    """The embeddings of the samples `wanted`, in the order of the data set: N×d float32.

    Raises:
        CorruptPart: a sample or its embedding is missing in a shard.
    """
    from safetensors.numpy import load

    rows = []
    for done, unit in enumerate(data.units, 1):
        for key, files in read_shard(data.shard(unit.unit)):
            if key in wanted:
                try:
                    rows.append(load(files["safetensors"])[name])
                except Exception as error:  # the library's own errors
                    raise CorruptPart(
                        f"score unit {unit.unit}: the {name} embedding of sample {key} is not readable "
                        f"({type(error).__name__}); run bootpig verify"
                    ) from None
        progress(done, len(data.units), "embeddings")
    if len(rows) != len(wanted):
        raise CorruptPart(f"score: {len(rows)} embeddings instead of {len(wanted)}; run bootpig verify")
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, 1), np.float32)
