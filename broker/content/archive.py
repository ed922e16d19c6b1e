"""Write and read archives of packages: a tar in zstd, each byte of which follows from the manifest.

The reader interprets nothing in the archive. It computes each header from the manifest's entry and
compares it with the archive's, so that an archive can neither name other paths nor other kinds of
files than the manifest, which is validated.
"""

import hashlib
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO, Protocol, Self

from schemas.errors import PcmError
from schemas.packages.manifest import Archive, Manifest, PackageFile, PackageLink, path_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TIME = 946_684_800
"""The time of all files: 2000-01-01 00:00 UTC; formats such as ZIP have none before 1980."""
DEFAULT_LEVEL = 3
CHUNK = 1024 * 1024

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_NAME_LENGTH = 100
_MAX_OCTAL = 8**11 - 1
_WINDOW_LOG = 23  # a reader needs 8 MiB
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}

Entry = PackageFile | PackageLink | str


class Readable(Protocol):
    """A file that can be read, such as one that `open` returns."""

    def read(self, size: int = -1, /) -> bytes:
        """Read at most a number of bytes; none at the end."""


Progress = Callable[[int], None]
"""Is called with a number of bytes that were processed since the last call."""


class WrongContent(PcmError):
    """Content is not what its manifest says; the text names the file and the difference."""


def header(entry: Entry) -> bytes:
    """Return the tar header of an entry; the name of an empty folder is its path."""
    if isinstance(entry, PackageFile):
        return _file_header(entry.path, entry.mode, entry.size)
    info = tarfile.TarInfo(path_of(entry))
    info.mtime = TIME
    if isinstance(entry, PackageLink):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
    else:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    return _to_bytes(info)


def _to_bytes(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _file_header(path: str, mode: str, size: int) -> bytes:
    if len(path) <= _NAME_LENGTH and path.isascii() and size <= _MAX_OCTAL:
        return _plain_header(path, mode, size)
    info = tarfile.TarInfo(path)
    info.mtime, info.mode, info.size = TIME, int(mode, 8), size
    return _to_bytes(info)


@cache
def _template(mode: str) -> tuple[bytes, int]:
    """Return a file's header without name, size and checksum, and the sum of its bytes."""
    info = tarfile.TarInfo("x")
    info.mtime, info.mode = TIME, int(mode, 8)
    found = bytearray(_to_bytes(info))
    found[0:1], found[124:136], found[148:156] = b"\0", bytes(12), b" " * 8
    return bytes(found), sum(found)


def _plain_header(path: str, mode: str, size: int) -> bytes:
    """Return what `tarfile` returns for a short name, at a tenth of its time."""
    template, total = _template(mode)
    name, octal = path.encode(), b"%011o" % size
    checksum = b"%06o\0 " % (total + sum(name) + sum(octal))
    return b"".join(
        (name, template[len(name) : 124], octal, template[135:148], checksum, template[156:])
    )


def _padding(size: int) -> int:
    return -size % _BLOCK


class _Sum:
    """A file to which an archive is written; sums what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def close(self) -> None:
        """Leave the file open: it belongs to the caller."""

    def archive(self) -> Archive:
        return Archive(sha256=self._hash.hexdigest(), size=self.size)


class ArchiveWriter:
    """Writes an archive: `with ArchiveWriter(file) as writer`, then the entries in order.

    The same entries and level give the same bytes, with the same version of zstd.
    """

    def __init__(self, file: BinaryIO, level: int = DEFAULT_LEVEL) -> None:
        self._sum = _Sum(file)
        parameter = zstd.CompressionParameter
        options: dict[int, int] = {
            parameter.compression_level: level,
            parameter.window_log: _WINDOW_LOG,
            parameter.checksum_flag: 1,
            # Beside our reading and summing; the number does not change the bytes, but 0 would.
            parameter.nb_workers: max(1, min(4, os.cpu_count() or 1)),
        }
        self._zstd = zstd.ZstdFile(self._sum, "w", options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zstd.close()

    def add_file(self, path: str, mode: str, source: BinaryIO, size: int) -> PackageFile:
        """Add a file; return its entry.

        Raises:
            WrongContent: the source has another size.
        """
        beginning = _file_header(path, mode, size)
        left, sha256 = size, hashlib.sha256()
        while data := source.read(min(CHUNK, left + 1)):
            left -= len(data)
            if left < 0:
                break
            sha256.update(data)
            end = b"" if left else bytes(_padding(size))
            self._zstd.write(b"".join((beginning, data, end)))
            beginning = b""
        if left:
            raise WrongContent(f"{path}: changed while it was read")
        if not size:
            self._zstd.write(beginning)
        return PackageFile(path=path, mode=mode, size=size, sha256=sha256.hexdigest())  # type: ignore[arg-type] # validated

    def add(self, entry: PackageLink | str) -> None:
        """Add a link, or an empty folder."""
        self._zstd.write(header(entry))

    def finish(self) -> Archive:
        """End the archive; return its sum and size."""
        self._zstd.write(_END)
        self._zstd.close()
        return self._sum.archive()


def unpack(
    manifest: Manifest, archive: BinaryIO, folder: Path, *, progress: Progress | None = None
) -> None:
    """Unpack an archive into a new folder, and verify each file.

    The folder must exist and be empty, and no other user can write to it. Check the archive's own
    sum before, with `check_archive`: it costs less than unpacking. After an error the folder has a
    part of the files; remove it.

    Raises:
        WrongContent: the archive is not the manifest's; the text says where.
        OSError: the disk is full, or a file cannot be written.
    """
    made: set[str] = {""}
    with _reading(archive) as reader:
        for entry in manifest.entries():
            _expect_header(reader, entry)
            path = path_of(entry)
            _make_folders(folder, path.rpartition("/")[0], made)
            if isinstance(entry, PackageFile):
                _unpack_file(reader, entry, folder / path, progress)
            elif isinstance(entry, PackageLink):
                (folder / path).symlink_to(entry.target)
            else:
                _make_folders(folder, path, made)
        _expect_end(reader)


def check_content(
    manifest: Manifest, archive: BinaryIO, *, progress: Progress | None = None
) -> None:
    """Check an archive as `unpack` does, without writing files.

    Raises:
        WrongContent: the archive is not the manifest's; the text says where.
    """
    with _reading(archive) as reader:
        for entry in manifest.entries():
            _expect_header(reader, entry)
            if isinstance(entry, PackageFile):
                _copy(reader, entry, None, progress)
        _expect_end(reader)


def check_archive(
    manifest: Manifest, archive: BinaryIO, *, progress: Progress | None = None
) -> None:
    """Check the sum and the size of an archive, from its present position to its end.

    Raises:
        WrongContent: it is not the manifest's archive.
    """
    sha256, size = hashlib.sha256(), 0
    while data := archive.read(CHUNK):
        size += len(data)
        if size > manifest.archive.size:
            break
        sha256.update(data)
        if progress:
            progress(len(data))
    if size != manifest.archive.size:
        longer = "more than " if size > manifest.archive.size else ""
        raise WrongContent(
            f"archive: has {longer}{min(size, manifest.archive.size):,} bytes, not"
            f" {manifest.archive.size:,}"
        )
    if sha256.hexdigest() != manifest.archive.sha256:
        raise WrongContent("archive: its SHA-256 is not the manifest's")


@contextmanager
def _reading(archive: BinaryIO) -> Iterator[Readable]:
    """Read the tar in an archive.

    Raises:
        WrongContent: it is not zstd, or would need too much memory.
    """
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    try:
        with zstd.ZstdFile(archive, options=options) as reader:
            yield reader
    except zstd.ZstdError as error:
        raise WrongContent(f"archive: is not zstd that can be read: {error}") from None
    except EOFError:
        raise WrongContent("archive: ends too early") from None


def _read(reader: Readable, size: int, place: str) -> bytes:
    """Read exactly a number of bytes."""
    parts = []
    while size:
        data = reader.read(size)
        if not data:
            raise WrongContent(f"{place}: the archive ends too early")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _expect_header(reader: Readable, entry: Entry) -> None:
    expected = header(entry)
    found = _read(reader, len(expected), path_of(entry))
    if found != expected:
        raise WrongContent(f"{path_of(entry)}: the archive has {_shown(found)} there")


def _shown(found: bytes) -> str:
    """Return what a wrong header says it is, for people."""
    try:
        info = tarfile.TarInfo.frombuf(found[-_BLOCK:], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "its end" if not any(found) else "something that is no header of a tar"
    kind = _KINDS.get(info.type, "a file" if info.isreg() else "an entry of another kind")
    link = f" to {info.linkname[:80]!a}" if info.linkname else ""
    return f"{kind} {info.name[:80]!a}{link}, mode {info.mode:04o}, {info.size:,} bytes"


def _expect_end(reader: Readable) -> None:
    if _read(reader, len(_END), "archive") != _END:
        raise WrongContent("archive: has entries that the manifest does not list")
    if reader.read(1):
        raise WrongContent("archive: has bytes after its end")


def _make_folders(root: Path, path: str, made: set[str]) -> None:
    """Make a folder and those around it, where they were not made before."""
    if path in made:
        return
    _make_folders(root, path.rpartition("/")[0], made)
    folder = root / path
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)  # whatever the umask is
    made.add(path)


def _unpack_file(
    reader: Readable, entry: PackageFile, path: Path, progress: Progress | None
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0) as file:
        _copy(reader, entry, file, progress)
        os.fchmod(file.fileno(), int(entry.mode, 8))
        os.utime(file.fileno(), (TIME, TIME))


def _copy(
    reader: Readable, entry: PackageFile, file: IO[bytes] | None, progress: Progress | None
) -> None:
    """Read the content of a file, and its padding; write it, if there is a file."""
    sha256 = hashlib.sha256()
    left = entry.size
    while left:
        data = _read(reader, min(left, CHUNK), entry.path)
        left -= len(data)
        sha256.update(data)
        if file is not None:
            _write(file, data)
        if progress:
            progress(len(data))
    if sha256.hexdigest() != entry.sha256:
        raise WrongContent(f"{entry.path}: its SHA-256 is not the manifest's")
    padding = _read(reader, _padding(entry.size), entry.path)
    if any(padding):
        raise WrongContent(f"{entry.path}: the archive has bytes between its entries")


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
