"""Distributes the test suite among pytest-xdist's workers."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator

import pytest

# Two workers on two cores: with more than one thread each, torch's threads wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a configuration asks for more threads, they sleep until there is work: on a busy machine those that spin, as is
# the default, take the core from the thread that they wait for. A run of four pictures took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Reset torch's thread count, which the engine sets and later tests would inherit."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file, and all tests that share a session server, on one worker. Slow ones go first."""
    for item in items:
        shared = [name for name in ("live", "prefect_api") if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.location[0]))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    _spare_garbage_collections()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """At the end of a file, whose fixtures are gone then."""
    done = yield
    if nextitem is None or nextitem.path != item.path:
        _spare_garbage_collections()
    return done


def _spare_garbage_collections() -> None:
    """Hide all that is alive now, which is mostly imported modules, from collections of garbage: the engine starts one
    for each stage that it leaves, and they took 0.4 s each."""
    gc.collect()
    gc.freeze()
