"""Finds a flow run's scheduled start time, and whether newer scheduled runs were cancelled because it was late."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run


def due() -> datetime:
    """Scheduled start time of the current flow run, or now if it has none. UTC, whole seconds."""
    when: datetime | None = flow_run.scheduled_start_time
    return _whole(when or datetime.now(UTC))


def due_behind(scheduled: datetime) -> datetime | None:
    """Scheduled time of the newest run that was cancelled because the current one holds the deployment's only slot.

    After days without a worker, all missed nightly runs start at once. The oldest gets the slot, and the concurrency
    limit of one cancels the others, including the one for last night.

    Args:
        scheduled: scheduled time of the current flow run.
    """
    since = {"after_": scheduled, "before_": datetime.now(UTC)}
    with get_client(sync_client=True) as client:
        me = client.read_flow_run(UUID(str(flow_run.id)))
        pending = [state.timestamp for state in client.read_flow_run_states(me.id) if state.is_pending()]
        if me.deployment_id is None or not pending:
            return None
        others = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[me.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED])),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(since),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    for other in others:
        if other.state is not None and other.state.timestamp >= min(pending) and other.expected_start_time is not None:
            return _whole(other.expected_start_time)
    return None


def _whole(when: datetime) -> datetime:
    return when.astimezone(UTC).replace(microsecond=0)
