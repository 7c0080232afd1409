"""prefect.yaml against a real server: three deployments, each with the parameters of its flow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def prefect(api: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=PROJECT,
        env=os.environ | {"PREFECT_API_URL": api, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_three_are_deployed(prefect_api: str) -> None:
    from prefect.client.orchestration import get_client

    prefect(prefect_api, "work-pool", "create", "bootpig", "--type", "process")
    prefect(prefect_api, "deploy", "--all")
    with get_client(sync_client=True) as client:
        deployments = {deployment.name: deployment for deployment in client.read_deployments()}
    assert set(deployments) == {"bootstrap", "run_stage", "regenerate"}
    for deployment in deployments.values():
        schema = deployment.parameter_openapi_schema
        assert "PipelineConfig" in str(schema)
        assert schema["properties"]["config"]["default"]["name"] == "toy"
    (schedule,) = deployments["regenerate"].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == ("0 2 * * *", "Etc/UTC", True)
    options = deployments["regenerate"].concurrency_options
    assert options.collision_strategy.value == "CANCEL_NEW"
