"""A repository on a model hub: the login and write access are checked before any upload; files are then committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bootpig.storage.errors import StoreError, StoreUnavailable
from bootpig.storage.faults import is_transient_status
from bootpig.storage.fingerprint import file_digest
from bootpig.storage.retry import retrying
from bootpig.storage.secrets import hide, mask

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.hf_api import RepoSibling

PROTOCOL = "hf://"
ATTRIBUTES = ".gitattributes"
"""The hub writes it into every new repository."""

SECONDS = 30.0
"""Timeout of a question to the hub."""

FILES_PER_COMMIT = 500
"""The hub looks up each large file of a commit, and ends a request after a minute."""

_GO_ON = "run again to go on, what was sent is kept"

Kind = Literal["model", "dataset"]


class HubRepository:
    """A repository that the logged-in user may write to. It need not exist yet, see `create`.

    Args:
        url: `hf://owner/name` for a model, `hf://datasets/owner/name` for a data set.
        kind: what it has to be.
        private: only its owner may read it.

    Raises:
        StoreError: the URL is not of that form, nobody is logged in, the token may not write, or the repository is
            public although `private` is asked for.
        StoreUnavailable: the hub cannot be reached.
    """

    def __init__(self, url: str, kind: Kind, private: bool = False) -> None:
        from huggingface_hub import HfApi, constants, get_token

        self.url = url
        self.kind = kind
        self.private = private
        self.name = _name(url, kind)
        token = get_token()
        if token is None:
            raise StoreError(
                f"--to: {url!r} → needs a login; run hf auth login, or set HF_TOKEN to a token that may write"
            )
        hide(token)
        self._api = HfApi(endpoint=constants.ENDPOINT, token=token)
        self.page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{self.name}"
        with self._asking():
            access = self._api.whoami().get("auth", {}).get("accessToken", {})
        if access.get("role") == "read":
            raise StoreError(f"--to: {url!r} → the token may only read; make one that may write, then hf auth login")
        self._files: dict[str, RepoSibling] | None = None
        """None: it does not exist."""
        self._head: str | None = None
        """The last commit of which this process knows. None: it does not exist."""
        self._sent: dict[str, CommitOperationAdd] = {}
        """Files whose content was sent, for the next commit."""
        self._look()

    def _look(self) -> None:
        """Read the list of files, and check that they may be written."""
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import DatasetInfo, ModelInfo

        with self._asking():
            try:
                info = self._api.repo_info(self.name, repo_type=self.kind, files_metadata=True, timeout=SECONDS)
            except RepositoryNotFoundError:
                return
            self._api.auth_check(self.name, repo_type=self.kind, write=True)
        assert isinstance(info, ModelInfo | DatasetInfo)
        if self.private and not info.private:
            raise StoreError(
                f"--private: {self.url!r} → is public already; make it private on its page or name another"
            )
        self._files = {file.rfilename: file for file in info.siblings or () if file.rfilename != ATTRIBUTES}
        self._head = info.sha

    @property
    def names(self) -> list[str]:
        """Its files; empty if it does not exist."""
        return sorted(self._files or ())

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, or None if it does not exist."""
        found = (self._files or {}).get(name)
        return None if found is None else found.size

    def read(self, name: str) -> bytes:
        """The bytes of a small file. Raises FileNotFoundError, and the same errors as the constructor."""
        if self.size(name) is None:
            raise FileNotFoundError(name)
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not in __all__
            hf_raise_for_status,
            http_backoff,
        )

        url = hf_hub_url(self.name, name, repo_type=self.kind, revision=self._head, endpoint=self._api.endpoint)
        with self._asking():
            headers = {"Authorization": f"Bearer {self._api.token}"}
            answer = http_backoff("GET", url, headers=headers, follow_redirects=True, timeout=SECONDS)
            hf_raise_for_status(answer)
            return answer.content

    def holds(self, name: str, file: Path) -> bool:
        """Whether it has the content of a local file under this name."""
        found = (self._files or {}).get(name)
        if found is None:
            return False
        if found.lfs is not None:
            return bool(found.lfs.sha256 == file_digest(file))
        return found.blob_id == _blob_id(file.read_bytes())  # files outside LFS are small

    def create(self) -> None:
        """Create it if it does not exist, and read again what it holds. Raises the same errors as the constructor."""
        if self._files is None:
            with self._asking():
                self._api.create_repo(self.name, repo_type=self.kind, private=self.private or None, exist_ok=True)
        self._look()

    def send(self, files: Mapping[str, Path | bytes]) -> None:
        """Send the content of files, which show up in the repository with the next `commit`. The local files may be
        removed afterwards. What the hub has already is not sent again.

        Raises:
            StoreError, StoreUnavailable: as for `upload`.
        """
        from huggingface_hub import CommitOperationAdd

        new = [CommitOperationAdd(name, content) for name, content in files.items()]
        with self._asking(_GO_ON):
            self._api.preupload_lfs_files(self.name, new, repo_type=self.kind)
        for operation in new:
            if isinstance(operation.path_or_fileobj, str):  # not a large file: its content is part of the commit
                operation.path_or_fileobj = Path(operation.path_or_fileobj).read_bytes()
            self._sent[operation.path_in_repo] = operation

    def commit(self, message: str) -> None:
        """Add all files that were sent, in this order; many files are several commits.

        Raises:
            StoreError: the hub refuses it, or the repository has changed since this process last read or wrote it.
            StoreUnavailable: as for `upload`.
        """
        while self._sent:
            some = list(islice(self._sent.values(), FILES_PER_COMMIT))
            with self._asking(_GO_ON):
                retrying(_may_pass)(lambda files=some: self._commit(message, files))  # type: ignore[misc]
            for file in some:
                del self._sent[file.path_in_repo]

    def _commit(self, message: str, files: Sequence[CommitOperationAdd]) -> None:
        try:
            done = self._api.create_commit(
                self.name, files, commit_message=message, repo_type=self.kind, parent_commit=self._head
            )
            self._head = done.oid
        except Exception as error:
            before = self._head
            try:
                self._look()
            except StoreUnavailable:
                raise error from None
            if all(self._has(file) for file in files):  # only its answer was lost
                return
            if self._head != before:
                raise StoreError(
                    f"--to: {self.url!r} → somebody else has written into it meanwhile; if that is another export, "
                    "wait for its end, then run again"
                ) from error
            raise

    def _has(self, file: CommitOperationAdd) -> bool:
        found = (self._files or {}).get(file.path_in_repo)
        if found is None:
            return False
        if found.lfs is not None:
            return bool(found.lfs.sha256 == file.upload_info.sha256.hex())
        with file.as_file() as stream:
            return found.blob_id == _blob_id(stream.read())

    def upload(self, folder: Path, message: str) -> None:
        """Upload all files of a folder. What is there already is not sent again.

        Raises:
            StoreError: the hub refuses it.
            StoreUnavailable: the hub fails to answer after all retries. What was sent is kept.
        """
        with self._asking(_GO_ON):
            self._api.upload_folder(repo_id=self.name, repo_type=self.kind, folder_path=folder, commit_message=message)

    @contextmanager
    def _asking(self, fix: str = "check the connection and HF_ENDPOINT, or try again later") -> Iterator[None]:
        """Turn the hub's errors in the block into one line."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            yield
        except StoreError:
            raise
        except OfflineModeIsEnabled:
            raise StoreError(f"--to: {self.url!r} → HF_HUB_OFFLINE is set; unset it") from None
        except Exception as error:
            refused = error if isinstance(error, HfHubHTTPError) else error.__cause__  # of one file among many
            status = refused.response.status_code if isinstance(refused, HfHubHTTPError) else None
            reason = mask(" ".join(str(getattr(refused, "server_message", None) or "").split())[:200])
            answer = f"{status}: {reason}" if reason else f"{status}"
            if status == 401:
                raise StoreError(
                    f"--to: {self.url!r} → the hub does not accept the token ({answer}); log in again with "
                    "hf auth login, or correct HF_TOKEN"
                ) from None
            if status == 403:
                raise StoreError(
                    f"--to: {self.url!r} → the token may not write there ({answer}); name a repository of your own, or "
                    "log in with a token that may write to it"
                ) from None
            said = f"the hub answers {answer}" if status is not None else f"{type(error).__name__}: {error}"
            raise StoreUnavailable(f"--to: {self.url!r} → {' '.join(mask(said).split())[:200]}; {fix}") from None


def _blob_id(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _may_pass(error: BaseException) -> bool:
    """Whether a commit may succeed if it is retried."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return is_transient_status(error.response.status_code)
    return isinstance(error, TransportError)


def _name(url: str, kind: Kind) -> str:
    """`owner/name` of a repository's URL. Raises StoreError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

    form = f"{PROTOCOL}{'datasets/' if kind == 'dataset' else ''}owner/name"
    words = url.removeprefix(PROTOCOL).split("/")
    given: str = "model"
    if len(words) == 3:
        given = words.pop(0).removesuffix("s")
    try:
        validate_repo_id("/".join(words))
    except HFValidationError:
        given = ""
    if not url.startswith(PROTOCOL) or given != kind or len(words) != 2:
        raise StoreError(
            f"--to: {url!r} → is not the repository of a {kind.replace('dataset', 'data set')}; write {form}"
        )
    return "/".join(words)
