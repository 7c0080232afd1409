"""Chooses where units run: threads or processes on this machine, or a Ray or Dask cluster (started or joined)."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from bootpig.flows import interrupt
from bootpig.flows.api import configured_api
from bootpig.flows.proxies import is_loopback
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, Stage
from bootpig.stages.engine.device_lock import devices
from bootpig.storage.root import Root

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

PACKAGES = {"ray": ("ray", "prefect_ray"), "dask": ("distributed", "prefect_dask")}

_CONNECT_SECONDS = 5.0


def runner_problems(config: PipelineConfig) -> list[str]:
    """The reasons why the runner cannot work, one line each. Checked without importing Ray or Dask."""
    runner, (field, address) = config.runner, _address(config)
    if any(importlib.util.find_spec(package) is None for package in PACKAGES.get(runner, ())):
        return [f"runner: {runner!r} → its packages are not installed; pip install 'bootpig[{runner}]'"]
    root = Root(config.root)
    if runner not in ("auto", "threads") and _in_memory(root):
        return [
            f"root: {config.root!r} → other processes cannot read it; use a folder, an s3:// URL, or runner=threads"
        ]
    if address is None or address == "auto":
        return []
    host, port = _host_and_port(address)
    if host is None or port is None:
        return [f"{field}: {address!r} → must contain host and port, such as {_EXAMPLES[runner]}"]
    problems = []
    if not is_loopback(host):
        if root.local is not None:
            problems.append(
                f"root: {config.root!r} → the workers of {address} cannot read a folder on this machine; "
                "use a store such as s3://bucket/folder"
            )
        api = configured_api()
        if api is None or is_loopback(urlsplit(api).hostname or ""):
            problems.append(
                f"PREFECT_API_URL: {api or 'not set'} → the workers of {address} cannot reach a server on loopback; "
                "start one with prefect server start --host 0.0.0.0, and set the variable to its address"
            )
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        problems.append(
            f"{field}: {address!r} → no cluster answers there ({error.strerror or error}); "
            f"start it, or leave {field} out so that the run starts its own"
        )
    return problems


def _in_memory(root: Root) -> bool:
    return bool(root.fs.protocol == "memory")


def _address(config: PipelineConfig) -> tuple[str, str | None]:
    """The cluster to join and what names it: the setting, or Ray's own variable. None: the run starts its own."""
    field, given = "runner_address", config.runner_address
    if given is None and config.runner == "ray":
        field, given = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "").strip()
    # Ray's own word for a cluster of one's own
    return field, None if given == "local" and config.runner == "ray" else given or None


_EXAMPLES = {"ray": "ray://head:10001 or head:6379", "dask": "tcp://scheduler:8786"}


def _host_and_port(address: str) -> tuple[str | None, int | None]:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        return parts.hostname, parts.port
    except ValueError:
        return None, None


@dataclass(frozen=True)
class Place:
    """Where the units of one stage run."""

    runner: Literal["threads", "processes", "ray", "dask"]
    workers: int
    """Units that run at the same time."""


class Workers:
    """The workers of one run. A cluster is started when the first unit needs it, serves all stages, and is stopped at
    the end of the run. A cluster that was joined keeps running."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._stack = ExitStack()
        self._address: str | None = None
        self._gpus = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def place(self, stage: Stage, units: int) -> Place:
        """Where a stage's units run, of which there are `units`. Counts this machine's GPUs if a setting is `auto`."""
        runner = self.config.runner
        if runner == "auto":
            apart = units > 1 and self.config.workers != 1 and not _in_memory(Root(self.config.root))
            runner = "processes" if apart and len(devices(stage.device())) > 1 else "threads"
        if runner == "threads" and self.config.workers == "auto":
            return Place(runner, 1)
        return Place(runner, self._count())

    def _count(self) -> int:
        """Number of workers that are processes."""
        workers = self.config.workers
        return max(1, len(devices("auto"))) if workers == "auto" else workers

    def task_runner(self, place: Place) -> TaskRunner[Any]:
        """A new Prefect task runner that uses the workers. Each flow needs its own.

        Raises:
            InputError: the cluster cannot be joined.
        """
        from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

        if place.runner == "ray":
            from prefect_ray import RayTaskRunner

            self._ray()
            return RayTaskRunner()
        if place.runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            return DaskTaskRunner(address=self._dask())
        if place.runner == "processes":
            return ProcessPoolTaskRunner(place.workers, initializer=interrupt.begin_worker)
        return ThreadPoolTaskRunner(place.workers)

    def placing(self, stage: Stage) -> AbstractContextManager[Any]:
        """A context for submitting units of `stage`. On a Ray cluster, each unit that can use a GPU gets one."""
        if self.config.runner != "ray" or not self._gpus or stage.device() == "cpu":
            return nullcontext()
        from prefect_ray.context import remote_options

        # by default Ray ends a worker after each task with a GPU, so every unit would have to load the models again
        return remote_options(num_gpus=1, max_calls=0)

    def _ray(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # keep Ray from hiding the GPUs of tasks that request none: the user and the stage decide which to use
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if ray.is_initialized():
            return
        field, joined = _address(self.config)
        # "local": else Ray joins a cluster that runs on this machine, or looks for one that has ended
        own: dict[str, Any] = {"address": "local", "num_cpus": self._count(), "include_dashboard": False}
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                **({"address": joined} if joined else own),
                namespace="prefect",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{field if joined else 'runner'}: {joined or 'ray'!r} → cannot {'join the' if joined else 'start a'} "
                f"cluster ({_first_line(error)}); Ray's version and RAY_AUTH_MODE must match the cluster's"
            ) from None
        finally:
            if main:
                signal.signal(signal.SIGTERM, handler)  # Ray installs its own
        self._stack.callback(ray.shutdown)
        self._gpus = ray.cluster_resources().get("GPU", 0.0)

    def _dask(self) -> str:
        if self.config.runner_address is not None:
            return self.config.runner_address
        if self._address is None:
            import distributed

            cluster = distributed.LocalCluster(
                n_workers=self._count(),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,  # no limit: models are large, and other workers have no room for spilled data
                silence_logs=logging.CRITICAL,
            )
            self._address = str(self._stack.enter_context(cluster).scheduler_address)
        return self._address


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
