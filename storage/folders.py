"""Folders published whole: files first, a manifest with their checksums last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from storage.errors import CorruptPart
from storage.fingerprint import file_digest
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
        root.upload(f"{path}/{name}", folder / name)
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
    """The names whose bytes are missing or altered; every byte is read."""
    return [name for name, facts in files.items() if _sha256(root, f"{path}/{name}") != facts["sha256"]]


def _sha256(root: Root, path: str) -> str | None:
    try:
        return root.sha256(path)
    except FileNotFoundError:
        return None


def fetch_folder(root: Root, path: str, files: Files, into: Path) -> Path:
    """A local copy of a published folder, every checksum checked; the folder itself where the store is local.

    Args:
        files: all that the manifest names, or those of them that are wanted.

    Raises:
        CorruptPart: a file is missing or altered.
    """
    if root.local is not None:
        bad, target = check_folder(root, path, files), root.local / path
    else:
        target = into / path.replace("/", "-")
        shutil.rmtree(target, ignore_errors=True)
        bad = [name for name, facts in files.items() if not _fetch(root, f"{path}/{name}", target / name, facts)]
    if bad:
        raise CorruptPart(f"{path}: {', '.join(bad)} missing or altered; run again to make it anew")
    return target


def _fetch(root: Root, path: str, file: Path, facts: Mapping[str, str | int]) -> bool:
    """Download one file. Returns whether it is there and whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.download(path, file)
    except FileNotFoundError:
        return False
    return file_digest(file) == facts["sha256"]
