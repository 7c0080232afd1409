"""Resolves a hub id and revision to a commit, from the hub's local cache or else by asking the hub."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bootpig.models.pretrained.source import KINDS, ModelError, first_line

HUB_SECONDS = 10.0
"""Timeout of a request to the hub."""


def hub_commit(field: str, repo: str, revision: str, entry: str | None) -> str:
    """The commit (40 hex digits) of a hub id: from the local hub cache if it has the model, else from the hub.

    Args:
        field: the config field that names the model, for messages.
        repo: the hub id.
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
    """The commit for which the hub's cache has one of the files `entries`, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for entry in entries:
        try:
            found = try_to_load_from_cache(repo, entry, revision=revision)
        except HFValidationError:  # not a valid id: the hub's error will say why
            return None
        if isinstance(found, str):
            return Path(found).parent.name
    return None


@cache
def _ask_hub(endpoint: str, repo: str, revision: str, entry: str | None) -> str:
    """Ask the hub. Cached, so that a process always uses the same commit of a branch. Errors are not cached."""
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
        if info.gated:  # its page is public, but not its files
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
            f"{repo!r} is not a local folder, and the hub cannot be reached ({first_line(error)}); "
            "give an existing folder, set HF_ENDPOINT to a mirror, or check the connection"
        ) from error
    if info.sha is None:
        raise ModelError(f"the hub returned no commit for {repo!r} at {revision!r}; give a commit as revision")
    if entry is not None and entry not in {file.rfilename for file in info.siblings or ()}:
        raise ModelError(f"{repo!r} has no {entry} at {revision!r}; name a repository of {KINDS[entry]}")
    return info.sha
