"""The engine of a run, made after one preflight: by the command line before it starts Prefect, else by the flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bootpig.flows.environment import scratch_problems
from bootpig.flows.runners import runner_problems
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import pinned, preflight

_CURRENT: ContextVar[Engine | None] = ContextVar("prepared", default=None)


def prepare(config: PipelineConfig, stages: Iterable[str]) -> Engine:
    """Check all that can be known before `stages` run, and open the store.

    Returns:
        An engine whose configuration names the commits of all hub models.

    Raises:
        InputError: what would keep the run from starting, one line per problem.
        StoreError: the root cannot be opened.
    """
    stages = list(stages)
    engine = Engine(config)
    if problems := preflight(engine, stages) + runner_problems(config) + scratch_problems():
        raise InputError("\n".join(problems))
    exact = pinned(engine, stages)
    return engine if exact == config else Engine(exact)


@contextmanager
def prepared(engine: Engine) -> Iterator[None]:
    """Flows called in the block run on `engine`, without another preflight."""
    token = _CURRENT.set(engine)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Engine | None:
    """The engine that the caller of this flow has prepared, if any."""
    return _CURRENT.get()
