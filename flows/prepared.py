"""Makes the engine of a run after a preflight, once: in the command line before Prefect starts, else in the flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bootpig.flows.environment import check_scratch
from bootpig.flows.rounds import with_trained_models
from bootpig.flows.runners import runner_problems
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import pinned, preflight

_CURRENT: ContextVar[tuple[PipelineConfig, Engine] | None] = ContextVar("prepared", default=None)


def prepare(config: PipelineConfig, stages: Iterable[str]) -> Engine:
    """Open the store and check everything that can be checked before `stages` run.

    Returns:
        An engine whose configuration has a commit for each hub model.

    Raises:
        InputError: something prevents the run; one line per problem.
        StoreError: the root cannot be opened.
    """
    stages = list(stages)
    engine = Engine(with_trained_models(config))
    check_scratch()  # first: libraries that open models write there as they are imported
    if problems := preflight(engine, stages) + runner_problems(config):
        raise InputError("\n".join(problems))
    exact = pinned(engine, stages)
    return engine if exact == engine.config else Engine(exact)


@contextmanager
def prepared(config: PipelineConfig, engine: Engine) -> Iterator[None]:
    """A context in which flows of `config` use `engine`, without another preflight."""
    token = _CURRENT.set((config, engine))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current(config: PipelineConfig) -> Engine | None:
    """The engine that the caller of this flow prepared for its configuration, if any."""
    known = _CURRENT.get()
    return known[1] if known is not None and known[0] == config else None
