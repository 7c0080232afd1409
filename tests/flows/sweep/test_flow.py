"""The flow `sweep` as Prefect sees it: the form of its parameters."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from bootpig.flows.sweep.cells import expand


def test_the_form_shows_the_fields_of_the_file_and_takes_its_json() -> None:
    from bootpig.flows.sweep.flow import EXAMPLE, sweep

    properties = sweep.parameters.definitions["SweepFile"]["properties"]
    assert {"name", "base", "root", "cells", "grid", "seeds", "baseline", "report"} == properties.keys()
    assert all("description" in field for field in properties.values())
    sent = json.loads(json.dumps({"sweep": EXAMPLE.model_dump(mode="json"), "retry_failed": True}))
    assert sweep.validate_parameters(sent) == {"sweep": EXAMPLE, "retry_failed": True}
    assert len(expand(EXAMPLE)) == 6


def test_it_is_deployed() -> None:
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    assert {"sweep": "flows/sweep/flow.py:sweep"}.items() <= {d["name"]: d["entrypoint"] for d in deployments}.items()
