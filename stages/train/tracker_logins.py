"""What experiment trackers lack, found before any work: their packages and their logins."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence

from bootpig.storage.root import masked
from bootpig.storage.secrets import mask

PACKAGES: dict[str, tuple[str, ...]] = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "trackio": ("trackio",)}
PACKAGES |= {"mlflow": ("mlflow", "mlflow-skinny")}
"""Tracker → the packages of which it needs one."""


def one_line(error: BaseException) -> str:
    """An error without secrets."""
    return masked(mask(" ".join(f"{type(error).__name__}: {error}".split())))[:300]


def tracker_problems(names: Sequence[str]) -> list[str]:
    """Packages and logins that these trackers lack, one line each."""
    problems = []
    for name in names:
        if not any(_installed(package) for package in PACKAGES[name]):
            problem = f"needs a package: pip install 'bootpig[{name}]'"
        else:
            problem = _LOGINS[name]() if name in _LOGINS else ""
        if problem:
            problems.append(f"train.trackers: {name} {problem}; or remove it from the list")
    return problems


def _installed(package: str) -> bool:
    # not find_spec, which takes the folder of another run, such as ./wandb, for the package
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _wandb_login() -> str:
    import wandb

    try:
        if wandb.setup().settings.mode in ("offline", "disabled", "dryrun") or wandb.login(prompt=False, verify=False):
            return ""
    except Exception as error:  # such as a key of the wrong length
        return f"cannot log in ({one_line(error)})"
    return "has no login: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"


def _trackio_login() -> str:
    from huggingface_hub import get_token

    if not os.environ.get("TRACKIO_SPACE_ID") or get_token() is not None:
        return ""
    return "has no login for the Space in TRACKIO_SPACE_ID: run `hf auth login`, set HF_TOKEN, or unset the variable"


def _mlflow_login() -> str:
    import mlflow

    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in quick}
    os.environ.update(quick)
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:
        fix = "correct it, or give its user name and password, or token"
        return f"cannot use MLFLOW_TRACKING_URI ({one_line(error)}): {fix}"
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return ""


_LOGINS: dict[str, Callable[[], str]] = {"wandb": _wandb_login, "trackio": _trackio_login, "mlflow": _mlflow_login}
"""Tracker → what its login lacks, empty if nothing. They import the packages."""
