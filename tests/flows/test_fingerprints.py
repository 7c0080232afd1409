"""Golden fingerprints: what the shipped configurations made before, they still find in the store.

They were recorded at commit 31bb0e3, before the engine ran a graph. A change here means that every user's store is made
again: it has to be meant, and to stand in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import graph_of
from bootpig.stages.registry import STAGES
from bootpig.storage.fingerprint import digest

GOLDEN = json.loads((Path(__file__).parent / "golden_fingerprints.json").read_text())
"""By configuration and stage: the digest of what the configuration itself adds to a fingerprint, without models."""

TOY = {
    "caption": "374b58952c7f22c3",
    "synthesize": "891d1e1d775973ba",
    "segment": "7ecfba1713762666",
    "augment": "bb1a4b83eb471c9f",
    "encode": "2fa5dec4110637d3",
}
"""Fingerprints with the models that are committed here."""


@pytest.mark.parametrize("name", list(GOLDEN))
def test_the_settings_of_a_shipped_configuration_hash_as_before(name: str) -> None:
    config = load_config(shipped_configs()[name])
    hashed = {
        stage: digest(
            {
                "stage": stage,
                "version": STAGES[stage].version,
                "config": getattr(config, stage).hashed(),
                "seed": config.seed,
                "unit_size": config.unit_size,
            }
        )[:16]
        for stage in graph_of(config).stages
    }
    assert hashed == GOLDEN[name]


def test_every_shipped_configuration_is_recorded() -> None:
    assert set(GOLDEN) == set(shipped_configs())


def test_the_toy_data_set_keeps_its_fingerprints(tmp_path: Path) -> None:
    surveys = Engine(load_config(shipped_configs()["toy"], [f"root={tmp_path}"])).survey_all(["encode"])
    assert {name: survey.fingerprint for name, survey in surveys.items()} == TOY
