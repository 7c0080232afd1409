"""Folders that every library needs: a temporary one with room, and a home for users that have none.

Containers run as a user without an entry in /etc/passwd, or with HOME=/.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from bootpig.stages.engine.contract import InputError

SCRATCH_BYTES = 2**20
"""Room that the temporary folder must have."""


def check_scratch() -> None:
    """See that the temporary folder can be used. A server whose folder is full loses flow runs.

    Raises:
        InputError: it cannot; the reason in one line.
    """
    given = os.environ.get("TMPDIR")
    try:
        # Python passes over a full TMPDIR without a word; SQLite and other libraries do not
        with tempfile.TemporaryFile(dir=given if given and os.path.isdir(given) else None) as probe:
            probe.write(bytes(SCRATCH_BYTES))
            probe.flush()
    except OSError as error:
        reason = error.strerror if not isinstance(error, FileNotFoundError) else "no temporary folder can be written"
        raise InputError(
            f"TMPDIR: {given or '/tmp'!r} → {reason}; free some space, or set TMPDIR to another folder"
        ) from None


def settle_home() -> str:
    """See that this process and those it starts have a home folder, and a user's name.

    Prefect, PyTorch and the model hub keep files below the home folder. Where there is none, a private folder below
    the temporary one serves; where it can only be read, as with HOME=/, it stays, and PREFECT_HOME alone moves there.

    Returns:
        What was done, in one line; empty if nothing.

    Raises:
        InputError: neither can be used.
    """
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        for name in ("USER", "LOGNAME"):  # getpass, and so PyTorch's compiler, asks for one of them
            os.environ.setdefault(name, str(os.getuid()))
        entry = None
    given = os.environ.get("HOME") or (entry.pw_dir if entry else "")
    if not given or not Path(given).is_dir():
        folder = _private_folder()
        os.environ["HOME"] = str(folder)
        return f"HOME: {given or 'not set'} → there is no such folder; {folder} serves in its place"
    if not os.access(given, os.W_OK | os.X_OK) and not os.environ.get("PREFECT_HOME"):
        own = Path(given, ".prefect")
        if not (own.is_dir() and os.access(own, os.W_OK | os.X_OK)):
            folder = _private_folder()
            os.environ["PREFECT_HOME"] = str(folder / ".prefect")
            return f"HOME: {given} → cannot be written; PREFECT_HOME is {folder / '.prefect'}"
    return ""


def _private_folder() -> Path:
    check_scratch()
    folder = Path(tempfile.gettempdir(), f"bootpig-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise InputError(
            f"HOME: → there is no home folder, and {folder} cannot be made ({error.strerror}); set HOME to a writable "
            "folder"
        ) from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise InputError(f"HOME: → there is no home folder, and {folder} is not ours; set HOME to a writable folder")
    return folder
