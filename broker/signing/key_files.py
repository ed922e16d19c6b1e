"""Read and write key files, with checks of their owner and permissions."""

import errno
import os
import stat
from pathlib import Path

from schemas.errors import PcmError

_LIMIT = 65_536
_MAX_LINKS = 40  # as the kernel's
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnsafeFile(PcmError):
    """A file or folder is unsafe or invalid; the message says why, and the remedy."""


def read_file(path: Path, *, private: bool = False) -> bytes:
    """Return the content of a regular file that only this user or root can write.

    `private`: and only they can read.

    Raises:
        UnsafeFile: the file is another one, or cannot be read.
    """
    try:
        file = os.open(path, _READ_FLAGS)
    except OSError as error:
        raise UnsafeFile(_reason(path, error)) from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFile(f"{path}: is not a regular file")
        _check_owner(path, status)
        if private and status.st_mode & 0o077:
            raise UnsafeFile(f"{path}: others can read it: chmod 600 {path}")
        if status.st_size > _LIMIT:
            raise UnsafeFile(f"{path}: has {status.st_size} bytes, too many for a key")
        return os.read(file, _LIMIT)
    finally:
        os.close(file)


def check_folder(path: Path) -> None:
    """Check that only this user and root can change or replace a folder.

    Raises:
        UnsafeFile: other users can, or it is not a folder.
    """
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise UnsafeFile(f"{path}: is not a folder")
        _check_owner(path, status)
        _check_way(path)
    except OSError as error:
        raise UnsafeFile(_reason(path, error)) from error


def _check_way(path: Path) -> None:
    """Check that only this user and root can change the folders and links that lead to a path."""
    here, *names = path.absolute().parts
    folder, links = Path(here), 0
    while names:
        folder_status = folder.lstat()
        # In a sticky folder, such as /tmp, others cannot replace our files.
        if not folder_status.st_mode & stat.S_ISVTX:
            _check_owner(folder, folder_status)
        found = folder / names.pop(0)
        status = found.lstat()
        if not stat.S_ISLNK(status.st_mode):
            folder = folder.parent if found.name == ".." else found
            continue
        if status.st_uid not in (0, os.geteuid()):
            raise UnsafeFile(f"{found}: is a link of another user (uid {status.st_uid})")
        links += 1
        if links > _MAX_LINKS:
            raise UnsafeFile(f"{found}: {os.strerror(errno.ELOOP)}")
        target = found.readlink()
        folder = Path(target.anchor) if target.is_absolute() else folder
        names[:0] = target.parts[1:] if target.is_absolute() else target.parts


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafeFile(f"{path}: belongs to neither root nor this user (uid {status.st_uid})")
    if status.st_mode & 0o022:
        raise UnsafeFile(f"{path}: others can write to it: chmod go-w {path}")


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a new file.

    Raises:
        UnsafeFile: the file exists, or cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123 - it is open
            os.fchmod(file, mode)
            opened.write(text)
            opened.flush()
            os.fsync(file)
    except OSError as error:
        raise UnsafeFile(_reason(path, error)) from error


def _reason(path: Path, error: OSError) -> str:
    is_link = error.errno == errno.ELOOP
    return f"{path}: {'is a link' if is_link else error.strerror}"
