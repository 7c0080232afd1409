"""`bootpig setup-server`: creates the work pool and the automations on a Prefect server."""

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
FLOWS = ("bootstrap", "run-stage", "regenerate", "sweep")
SUBFLOWS = ("cell", *STAGES)

SILENCE = timedelta(seconds=90)
"""Three missed heartbeats: the run's process is gone."""

SILENT = "bootpig: a run that has gone silent is Crashed"
FAILED = "bootpig: tell that a run has failed"

MESSAGE = """{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run | ui_url }}"""


def set_up(notify: str | None = None, silence: timedelta = SILENCE) -> list[str]:
    """Create or update the work pool and the automations. Returns one line for each that says what was done.

    Args:
        notify: block that is notified of failed runs, as `<block type>/<name>`, such as `slack-webhook/oncall`.
        silence: time without a heartbeat after which a run is marked Crashed.

    Raises:
        InputError: the block does not exist.
    """
    done = []
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            done.append(f"work pool {POOL!r} created")
        except ObjectAlreadyExists:
            done.append(f"work pool {POOL!r} exists")
        automations = [_silent(silence)]
        if notify is not None:
            automations.append(_failed(client, notify))
        return done + [_keep(client, automation) for automation in automations]


def _silent(silence: timedelta) -> AutomationCore:
    """Marks runs without heartbeats as Crashed. A killed process reports nothing and would stay Running forever."""
    ends = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Skipped")
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ends)},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        # other flows on the server may send heartbeats less often
        match_related=_of_flows([*FLOWS, *SUBFLOWS]),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=silence,
    )
    message = f"No heartbeat for {silence.total_seconds():.0f} s: the process is gone. Retry the run to continue it."
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)
    return AutomationCore(name=SILENT, description="See docs/prefect.md", trigger=trigger, actions=[action])


def _failed(client: SyncPrefectClient, notify: str) -> AutomationCore:
    kind, slash, name = notify.partition("/")
    try:
        if not slash:
            raise InputError(f"--notify: {notify!r} → write <block type>/<name>, such as slack-webhook/oncall")
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise InputError(
            f"--notify: {notify!r} → there is no such block on the server; list them with prefect block ls"
        ) from None
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
    return AutomationCore(name=FAILED, description=f"Notifies {notify}", trigger=trigger, actions=[action])


def _of_flows(names: list[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": names})


def _keep(client: SyncPrefectClient, automation: AutomationCore) -> str:
    before = client.read_automations_by_name(automation.name)
    if not before:
        client.create_automation(automation)
        return f"automation {automation.name!r} created"
    # an automation that a user has paused stays paused
    client.update_automation(before[0].id, automation.model_copy(update={"enabled": before[0].enabled}))
    return f"automation {automation.name!r} updated"
