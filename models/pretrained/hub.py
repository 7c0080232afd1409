"""Which commit a hub id stands for: read from the hub's cache on this machine, else asked of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bootpig.models.pretrained.source import KINDS, ModelError, first_line

HUB_SECONDS = 10.0
"""How long one request to the hub may take."""


def hub_commit(field: str, repo: str, revision: str, entry: str | None) -> str:
    """The commit, 40 hex digits, of a hub id: from the hub's cache if that has the model, else from the hub.

    Args:
        field: the config field that names the model, for messages.
        revision: a branch, tag or commit.
        entry: a file that the model must have, see `bootpig.models.pretrained.sources.resolve`.

    Raises:
        ModelError: the hub has no such repository, revision or `entry`, refuses access, or cannot be reached.
    """
    from huggingface_hub import constants

    cached = _cached_commit(repo, revision, KINDS if entry is None else (entry,))
    if cached is not None:
        return cached
    try:
        return _ask_hub(constants.ENDPOINT, repo, revision, entry)
    except ModelError as error:
        raise ModelError(f"{field}: {error}") from error


def _cached_commit(repo: str, revision: str, entries: Iterable[str]) -> str | None:
    """The commit under which the hub's cache has one of the files `entries`, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for entry in entries:
        try:
            found = try_to_load_from_cache(repo, entry, revision=revision)
        except HFValidationError:  # not an id: the hub's own refusal says why
            return None
        if isinstance(found, str):
            return Path(found).parent.name
    return None


@cache
def _ask_hub(endpoint: str, repo: str, revision: str, entry: str | None) -> str:
    """The hub's answer, kept: a process sees one commit of a branch for its whole life. Errors are not kept."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(repo, revision=revision, timeout=HUB_SECONDS)
        if info.gated:  # everyone may look at it, but not download it
            api.auth_check(repo)
    except GatedRepoError as error:
        raise ModelError(
            f"{repo!r} is gated; accept its licence on its hub page and log in (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo!r} has no revision {revision!r}; see the branches on its hub page") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo!r} is neither a local folder nor on the hub; name a mirror or a folder, "
            "or log in if it is private (`hf auth login`)"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ModelError(
            f"{repo!r} at {revision!r} is not in the hub's cache, and HF_HUB_OFFLINE is set; "
            "download it first (`hf download`) or give a local folder"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = "log in again (`hf auth login`)" if status in (401, 403) else "try again later or give a local folder"
        raise ModelError(f"the hub answered {status} for {repo!r}; {fix}") from error
    except Exception as error:
        raise ModelError(
            f"{repo!r} is no local folder, and the hub cannot be asked ({first_line(error)}); "
            "give an existing folder, a mirror (HF_ENDPOINT), or go online"
        ) from error
    if info.sha is None:
        raise ModelError(f"the hub names no commit for {repo!r} at {revision!r}; give a commit as revision")
    if entry is not None and entry not in {file.rfilename for file in info.siblings or ()}:
        raise ModelError(f"{repo!r} has no {entry} at {revision!r}; name a repository of {KINDS[entry]}")
    return info.sha
