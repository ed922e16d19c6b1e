"""The packages of a workstation: a folder of the service agent, which no user can write to.

STATE_DIR/content/       names are visible only to their owner
    packages/            the service's own: MANIFEST.manifest, ARCHIVE.archive, ARCHIVE.part
    foreground/          links to what foreground jobs need: users' agents read them by name
    copies/              private copies in which commands run

Names are SHA-256 sums. A file gets its name when it is complete, verified and on the disk, so that
a crash leaves at most a part, which is resumed, or a link that is made again.
"""

import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agents.content.download import Part
from agents.store.state_folder import CONTENT, FOREGROUND, PACKAGES, sync_directory
from broker.content.archive import WrongContent
from broker.log import get_logger
from schemas import InvalidMessage, Manifest, SignedText
from schemas.errors import PcmError
from schemas.packages.manifest import MANIFEST_LIMIT, manifest_digest

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
SIGNED_LIMIT = 2 * MANIFEST_LIMIT
"""The greatest size of a signed manifest: as text in JSON it is longer."""
_log = get_logger()


class NoRoom(PcmError):
    """A package does not fit into the cache, or onto the disk; the text says why."""


@dataclass(frozen=True)
class VerifiedManifest:
    """A manifest that was verified against its sum.

    Attributes:
        digest: the SHA-256 of the manifest's text.
        manifest: the manifest.
        signed: its text and signatures.
    """

    digest: str
    manifest: Manifest
    signed: SignedText


def read_package(body: bytes, digest: str) -> VerifiedManifest:
    """Read a signed manifest.

    Raises:
        WrongContent: it is none, or another one than the sum names.
    """
    try:
        signed = SignedText.read(body)
        if manifest_digest(signed.content) != digest:
            raise WrongContent("manifest: its SHA-256 is not the job's")
        return VerifiedManifest(digest, Manifest.read(signed.content), signed)
    except InvalidMessage as error:
        raise WrongContent(f"manifest: {error}") from None


def read_shared(state_dir: Path, digest: str) -> VerifiedManifest | None:
    """Return a package that the service agent has for foreground jobs; None if it has none.

    Raises:
        WrongContent: it is another one.
    """
    path = state_dir / CONTENT / FOREGROUND / f"{digest}.manifest"
    body = _read(path)
    return None if body is None else read_package(body, digest)


def shared_archive(state_dir: Path, manifest: Manifest) -> Path:
    """Return where the service agent has a package's archive for foreground jobs."""
    return state_dir / CONTENT / FOREGROUND / f"{manifest.archive.sha256}.archive"


def shared_progress(state_dir: Path, digest: str) -> bytes | None:
    """Return what the service agent says about a package that it fetches for foreground jobs."""
    return _read(state_dir / CONTENT / FOREGROUND / f"{digest}.progress")


def open_archive(path: Path) -> int:
    """Open an archive; return its file descriptor.

    Raises:
        WrongContent: it is not a regular file.
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WrongContent("archive: is a link") from None
        raise


def _read(path: Path) -> bytes | None:
    try:
        with os.fdopen(os.open(path, _READ), "rb") as file:
            return file.read(SIGNED_LIMIT)
    except FileNotFoundError:
        return None


class Cache:
    """The service agent's cache of packages."""

    def __init__(self, state_dir: Path, limit: int) -> None:
        """Open the folders, and remove what an earlier run left in the middle."""
        self._folder = state_dir / CONTENT / PACKAGES
        self._foreground = state_dir / CONTENT / FOREGROUND
        self._limit = limit
        for folder in (self._folder, self._foreground):
            for path in (*folder.glob("*.new"), *folder.glob("*.progress")):
                path.unlink()

    def package(self, digest: str) -> VerifiedManifest | None:
        """Return a package whose manifest is there.

        Raises:
            WrongContent: the file was changed.
            OSError: it cannot be read.
        """
        body = _read(self._manifest_path(digest))
        return None if body is None else read_package(body, digest)

    def has_archive(self, manifest: Manifest) -> bool:
        """Whether the archive is there, with its size."""
        try:
            return self.archive_path(manifest).stat().st_size == manifest.archive.size
        except OSError:
            return False

    def archive_path(self, manifest: Manifest) -> Path:
        """Return the path of a package's archive."""
        return self._folder / f"{manifest.archive.sha256}.archive"

    def archive_of(self, sha256: str) -> Path:
        """Return the path of an archive."""
        return self._folder / f"{sha256}.archive"

    def part(self, manifest: Manifest) -> Part:
        """Return the part of a package's archive."""
        archive = manifest.archive
        return Part(self._folder / f"{archive.sha256}.part", archive.sha256, archive.size)

    def store_manifest(self, digest: str, body: bytes) -> None:
        """Store a manifest that was verified.

        Raises:
            OSError: the disk does not take it.
        """
        path = self._manifest_path(digest)
        new = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_directory(self._folder)

    def store_archive(self, part: Part) -> None:
        """Store an archive whose part is complete and verified.

        Raises:
            OSError: the disk fails.
        """
        part.path.chmod(0o644)
        part.complete(self.archive_of(part.sha256))
        sync_directory(self._folder)

    def discard(self, package: VerifiedManifest) -> None:
        """Remove a package's archive, which is not the manifest's any more."""
        self.archive_path(package.manifest).unlink(missing_ok=True)
        shared_name = f"{package.manifest.archive.sha256}.archive"
        (self._foreground / shared_name).unlink(missing_ok=True)

    def discard_manifest(self, digest: str) -> None:
        """Remove a manifest, which is not the one that its name says."""
        self._manifest_path(digest).unlink(missing_ok=True)
        (self._foreground / f"{digest}.manifest").unlink(missing_ok=True)

    def share(self, package: VerifiedManifest) -> None:
        """Let users' agents read a package, as long as it is there: a foreground job needs it.

        Raises:
            OSError: the disk does not take the link.
        """
        for path in (self._manifest_path(package.digest), self.archive_path(package.manifest)):
            link = self._foreground / path.name
            with suppress(FileNotFoundError):
                if not (link.exists() and link.samefile(path)):
                    link.unlink(missing_ok=True)
                    link.hardlink_to(path)

    def share_progress(self, digest: str, body: bytes) -> None:
        """Tell users' agents how far a package is that a foreground job needs."""
        new = self._foreground / f"{digest}.new"
        new.write_bytes(body)
        new.chmod(0o644)
        new.rename(self._foreground / f"{digest}.progress")

    def end_progress(self, digest: str) -> None:
        """Tell users' agents nothing more about a package."""
        (self._foreground / f"{digest}.progress").unlink(missing_ok=True)

    def touch(self, package: VerifiedManifest) -> None:
        """Note that a package is used: the least recently used one is removed first."""
        now = time.time()
        for path in (self._manifest_path(package.digest), self.archive_path(package.manifest)):
            with suppress(OSError):  # the disk is read-only, for example
                os.utime(path, (now, now))

    def make_room(self, part: Part, needed: Collection[str]) -> None:
        """Remove the least recently used packages until an archive fits.

        Args:
            part: what there is of the archive.
            needed: the names, without suffix, of the files that open jobs need.

        Raises:
            NoRoom: it does not fit beside what open jobs need.
        """
        missing = part.size - part.received
        if part.size > self._limit:
            raise NoRoom(
                f"the archive has {part.size:,} bytes, over the limit of {self._limit:,}:"
                " PCM_CACHE_SIZE"
            )
        removable = sorted(self._removable(needed), reverse=True)
        while True:
            excess = self._size() + missing - self._limit
            free = shutil.disk_usage(self._folder).free
            if excess <= 0 and missing <= free:
                return
            if not removable:
                break
            _, path = removable.pop()
            _log.info("content.removed", file=path.name, reason="the least recently used")
            path.unlink(missing_ok=True)
            (self._foreground / path.name).unlink(missing_ok=True)
        if excess > 0:
            raise NoRoom(
                f"{missing:,} bytes more do not fit into the cache beside what jobs need:"
                " PCM_CACHE_SIZE"
            )
        raise NoRoom(f"the disk has {free:,} bytes free, {missing:,} are missing")

    def _removable(self, needed: Collection[str]) -> Iterator[tuple[float, Path]]:
        for path, status in self._files():
            if path.stem not in needed:
                yield status.st_mtime, path

    def _size(self) -> int:
        return sum(status.st_blocks * 512 for _, status in self._files())

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                yield path, path.lstat()

    def _manifest_path(self, digest: str) -> Path:
        return self._folder / f"{digest}.manifest"
