"""Files of keys: read only where nobody else could have put something into them."""

import errno
import os
import stat
from pathlib import Path

from schemas.errors import PcmError

_LIMIT = 65_536
_SAFELY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnsafeFile(PcmError):
    """A file or folder is not what it has to be; the text says why, and what would be right."""


def read_file(path: Path, *, private: bool = False) -> bytes:
    """Return what is in a plain file of ours or root's that nobody else may write to.

    `private`: nor read.

    Raises:
        UnsafeFile: it is none.
    """
    try:
        file = os.open(path, _SAFELY)
    except OSError as error:
        raise UnsafeFile(_why(path, error)) from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeFile(f"{path}: is no plain file")
        _check_owner(path, found)
        if private and found.st_mode & 0o077:
            raise UnsafeFile(f"{path}: others may read it: chmod 600 {path}")
        if found.st_size > _LIMIT:
            raise UnsafeFile(f"{path}: has {found.st_size} bytes, and is no key")
        return os.read(file, _LIMIT)
    finally:
        os.close(file)


def check_folder(path: Path) -> None:
    """Check that only we and root can put files into a folder, or another in its place.

    Raises:
        UnsafeFile: somebody else can, or it is no folder.
    """
    try:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise UnsafeFile(f"{path}: is no folder")
        _check_owner(path, found)
        for parent in path.absolute().resolve().parents:
            above = parent.stat()
            if not above.st_mode & stat.S_ISVTX:  # else, as in /tmp, what is ours stays
                _check_owner(parent, above)
    except OSError as error:
        raise UnsafeFile(_why(path, error)) from error


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise UnsafeFile(f"{path}: belongs to neither root nor this user (uid {found.st_uid})")
    if found.st_mode & 0o022:
        raise UnsafeFile(f"{path}: others may write to it: chmod go-w {path}")


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that is not there yet.

    Raises:
        UnsafeFile: it is there, or cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123 - it is open
            os.fchmod(file, mode)
            opened.write(text)
            opened.flush()
            os.fsync(file)
    except OSError as error:
        raise UnsafeFile(_why(path, error)) from error


def _why(path: Path, error: OSError) -> str:
    links = error.errno == errno.ELOOP
    return f"{path}: {'is a link' if links else error.strerror}"
