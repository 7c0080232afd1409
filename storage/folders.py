"""Publishes folders atomically: files first, in a folder named after their digest, then a manifest with checksums.

If two writers publish the same folder, both leave complete files, and the last manifest wins.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import digest, file_digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

Files = dict[str, dict[str, str | int]]
"""Relative name → {"sha256", "size"}."""


@dataclass(frozen=True)
class Published:
    """A published folder, as described by its manifest."""

    path: str
    """Folder that holds the files, relative to the root."""
    files: Files


def describe_folder(folder: Path) -> Files:
    """Names, digests and sizes of all files in a local folder and its subfolders, sorted."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return {name: {"sha256": file_digest(folder / name), "size": (folder / name).stat().st_size} for name in names}


def publish_folder(root: Root, path: str, folder: Path) -> Published:
    """Copy a local folder to `path/<digest>`, write `path/manifest.json`, and remove the folder it named before."""
    files = describe_folder(folder)
    published = Published(f"{path}/{digest(files)[:16]}", files)
    for name in files:
        root.upload(f"{published.path}/{name}", folder / name)
    before = None
    with suppress(CorruptPart):
        before = read_manifest(root, path)
    manifest = {"folder": published.path.rsplit("/", 1)[-1], "files": files}
    root.write(f"{path}/manifest.json", json.dumps(manifest, indent=2, sort_keys=True).encode())
    if before is not None and before.path != published.path:
        root.remove(before.path, recursive=True)
    return published


def read_manifest(root: Root, path: str) -> Published | None:
    """A published folder, or None if there is no manifest: publishing it never started or did not finish.

    Raises:
        CorruptPart: the manifest cannot be read, or names a file outside its folder.
    """
    try:
        manifest = parse_json(root.read(f"{path}/manifest.json"))
        folder, files = str(manifest["folder"]), manifest["files"]
        names = [PurePosixPath(name) for name in files]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptPart(f"{path}/manifest.json is not readable ({error}); remove it and run again") from None
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise CorruptPart(f"{path}/manifest.json names {str(name)!r}, which is outside its folder")
    if not re.fullmatch(r"[0-9a-f]{16}", folder):
        raise CorruptPart(f"{path}/manifest.json names {folder!r}, which is outside its folder")
    return Published(f"{path}/{folder}", files)


def withdraw_folder(root: Root, path: str, published: Published) -> None:
    """Remove a published folder, unless another has replaced it. The manifest goes first, so no half folder is read."""
    with suppress(CorruptPart):
        if read_manifest(root, path) not in (published, None):
            return
    root.remove(f"{path}/manifest.json")
    root.remove(published.path, recursive=True)


def check_folder(root: Root, published: Published) -> list[str]:
    """The names of files that are missing or altered. Reads every byte."""
    facts = published.files.items()
    return [name for name, known in facts if _sha256(root, f"{published.path}/{name}") != known["sha256"]]


def _sha256(root: Root, path: str) -> str | None:
    try:
        return root.sha256(path)
    except FileNotFoundError:
        return None


def fetch_folder(root: Root, published: Published, into: Path) -> Path:
    """A local copy of a published folder with every checksum verified. For a local store, the folder itself.

    Args:
        published: the folder; `files` may hold only some of those in the manifest.

    Raises:
        CorruptPart: a file is missing or altered.
    """
    path, files = published.path, published.files
    if root.local is not None:
        bad, target = check_folder(root, published), root.local / path
    else:
        target = into / path.replace("/", "-")
        shutil.rmtree(target, ignore_errors=True)
        bad = [name for name, facts in files.items() if not _fetch(root, f"{path}/{name}", target / name, facts)]
    if bad:
        raise CorruptPart(f"{path}: {', '.join(bad)} missing or altered; run again to rebuild it")
    return target


def _fetch(root: Root, path: str, file: Path, facts: Mapping[str, str | int]) -> bool:
    """Download one file. Returns whether it exists and matches its checksum."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.download(path, file)
    except FileNotFoundError:
        return False
    return file_digest(file) == facts["sha256"]
