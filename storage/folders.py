"""Folders published whole: files first, a manifest with their checksums last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from storage.errors import CorruptPart
from storage.fingerprint import bytes_digest, file_digest
from storage.root import Root

Files = dict[str, dict[str, str | int]]
"""Relative name → {"sha256", "size"}."""


def describe_folder(folder: Path) -> Files:
    """Names, digests and sizes of all files below a local folder, sorted."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return {name: {"sha256": file_digest(folder / name), "size": (folder / name).stat().st_size} for name in names}


def publish_folder(root: Root, path: str, folder: Path) -> Files:
    """Copy a local folder to `path`, `manifest.json` last. Returns its files."""
    files = describe_folder(folder)
    for name in files:
        root.write(f"{path}/{name}", (folder / name).read_bytes())
    root.write(f"{path}/manifest.json", json.dumps({"files": files}, indent=2, sort_keys=True).encode())
    return files


def read_manifest(root: Root, path: str) -> Files | None:
    """The files of a published folder, or None when it isn't there or isn't whole.

    Raises:
        CorruptPart: the manifest is unreadable, or names a file outside its folder.
    """
    try:
        files: Files = json.loads(root.read(f"{path}/manifest.json"))["files"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptPart(f"{path}/manifest.json is not readable ({error})") from None
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CorruptPart(f"{path}/manifest.json names {name!r}, which lies outside its folder")
    return files


def check_folder(root: Root, path: str, files: Files) -> list[str]:
    """The names whose bytes are missing or altered."""
    bad = []
    for name, facts in files.items():
        try:
            if bytes_digest(root.read(f"{path}/{name}")) != facts["sha256"]:
                bad.append(name)
        except FileNotFoundError:
            bad.append(name)
    return bad


def fetch_folder(root: Root, path: str, files: Files, into: Path) -> Path:
    """A local copy of a published folder, every checksum checked; the folder itself where the store is local.

    Raises:
        CorruptPart: a file is missing or altered.
    """
    bad = check_folder(root, path, files)
    if bad:
        raise CorruptPart(f"{path}: {', '.join(bad)} missing or altered; run again to make it anew")
    if root.local is not None:
        return root.local / path
    target = into / path.replace("/", "-")
    shutil.rmtree(target, ignore_errors=True)
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(root.read(f"{path}/{name}"))
    return target
