"""Verify the files of a package in a folder against its manifest."""

import hashlib
import os
import stat
from pathlib import Path

from broker.content.archive import CHUNK, Progress, WrongContent
from schemas.packages.manifest import Manifest, PackageFile, PackageLink, path_of


def verify_folder(manifest: Manifest, folder: Path, *, progress: Progress | None = None) -> None:
    """Check that a folder has exactly what the manifest lists, each file with its sum.

    Extra files count as a change, too: a program could load them. Owners and times are not checked.

    Raises:
        WrongContent: something differs; the text names the first difference.
        OSError: a file cannot be read.
    """
    entries = {path_of(entry): entry for entry in manifest.entries()}
    folders = {path for path, entry in entries.items() if isinstance(entry, str)}
    for path in entries:
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    missing = entries.keys() | folders
    for path, found in _walk(folder, ""):
        if path in folders:
            _check_folder(path, found)
        elif (entry := entries.get(path)) is None:
            raise WrongContent(f"{path!a}: is not in the manifest")
        elif isinstance(entry, PackageLink):
            if not found.is_symlink() or str(Path(found).readlink()) != entry.target:
                raise WrongContent(f"{path}: is not the manifest's link to {entry.target}")
        elif isinstance(entry, PackageFile):
            _check_file(entry, found, progress)
        missing.discard(path)
    if missing:
        raise WrongContent(f"{min(missing)}: is missing")


def _walk(folder: Path, path: str) -> "list[tuple[str, os.DirEntry[str]]]":
    """Return all entries below a folder; links are not followed."""
    found: list[tuple[str, os.DirEntry[str]]] = []
    waiting = [path]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                found.append((name, entry))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
    return found


def _check_folder(path: str, found: "os.DirEntry[str]") -> None:
    if not found.is_dir(follow_symlinks=False):
        raise WrongContent(f"{path}: is not a folder")
    if stat.S_IMODE(found.stat(follow_symlinks=False).st_mode) & 0o7022:
        raise WrongContent(f"{path}: others than its owner can write to it")


def _check_file(entry: PackageFile, found: "os.DirEntry[str]", progress: Progress | None) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not found.is_file(follow_symlinks=False):
        raise WrongContent(f"{entry.path}: is not a regular file")
    with os.fdopen(os.open(found.path, flags), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            raise WrongContent(f"{entry.path}: has {status.st_size:,} bytes, not {entry.size:,}")
        if stat.S_IMODE(status.st_mode) != int(entry.mode, 8):
            mode = stat.S_IMODE(status.st_mode)
            raise WrongContent(f"{entry.path}: has mode {mode:04o}, not {entry.mode}")
        sha256 = hashlib.sha256()
        while data := file.read(min(CHUNK, entry.size + 1)):
            sha256.update(data)
            if progress:
                progress(len(data))
    if sha256.hexdigest() != entry.sha256:
        raise WrongContent(f"{entry.path}: its SHA-256 is not the manifest's")
