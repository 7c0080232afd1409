"""`bootpig setup-server`: what a Prefect server needs besides deployments: the work pool, and its automations."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect.automations import (
    AutomationCore,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
    SendNotification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from bootpig.stages.engine.contract import InputError
from bootpig.stages.registry import STAGES

POOL = "bootpig"
FLOWS = ("bootstrap", "run-stage", "regenerate")

SILENCE = timedelta(seconds=90)
"""Three heartbeats missed: such a run has no process any more."""

SILENT = "bootpig: a run that has gone silent is Crashed"
FAILED = "bootpig: tell that a run has failed"

MESSAGE = """{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run | ui_url }}"""


def set_up(notify: str | None = None, silence: timedelta = SILENCE) -> list[str]:
    """Make, or bring up to date, the work pool and the automations. Returns what was done, one line each.

    Args:
        notify: the block that is told of failed runs, as `<block type>/<name>`, such as `slack-webhook/oncall`.
        silence: after which a run that sends no heartbeat is marked Crashed.

    Raises:
        InputError: there is no such block.
    """
    done = []
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            done.append(f"work pool {POOL!r} created")
        except ObjectAlreadyExists:
            done.append(f"work pool {POOL!r} is there")
        automations = [_silent(silence)]
        if notify is not None:
            automations.append(_failed(client, notify))
        return done + [_keep(client, automation) for automation in automations]


def _silent(silence: timedelta) -> AutomationCore:
    """A killed process says nothing, and would be Running for good."""
    ends = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Skipped")
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ends)},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        # other flows of the server may beat more slowly
        match_related=_of_flows([*FLOWS, *STAGES]),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=silence,
    )
    message = f"No heartbeat for {silence.total_seconds():.0f} s: its process is gone. It can be retried."
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)
    return AutomationCore(name=SILENT, description="See docs/prefect.md", trigger=trigger, actions=[action])


def _failed(client: SyncPrefectClient, notify: str) -> AutomationCore:
    kind, slash, name = notify.partition("/")
    try:
        if not slash:
            raise InputError(f"--notify: {notify!r} → write <block type>/<name>, such as slack-webhook/oncall")
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise InputError(f"--notify: {notify!r} → the server has no such block; see prefect block ls") from None
    assert block.id is not None
    trigger = EventTrigger(
        expect={f"prefect.flow-run.{name}" for name in ("Failed", "Crashed", "TimedOut")},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=_of_flows(list(FLOWS)),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    action: Any = (
        CallWebhook(block_document_id=block.id, payload=MESSAGE)
        if kind == "webhook"
        else SendNotification(block_document_id=block.id, subject="bootpig: {{ flow_run.state.name }}", body=MESSAGE)
    )
    return AutomationCore(name=FAILED, description=f"Tells {notify}", trigger=trigger, actions=[action])


def _of_flows(names: list[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": names})


def _keep(client: SyncPrefectClient, automation: AutomationCore) -> str:
    before = client.read_automations_by_name(automation.name)
    if not before:
        client.create_automation(automation)
        return f"automation {automation.name!r} created"
    # who has paused it finds it paused
    client.update_automation(before[0].id, automation.model_copy(update={"enabled": before[0].enabled}))
    return f"automation {automation.name!r} brought up to date"
