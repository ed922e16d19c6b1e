"""The state directory that the agents of a workstation share, and what is private in it.

STATE_DIR/            open to all who run an agent here
    claims/           one file for each foreground job that an agent took
    service/          one folder for each agent, its own: ledger, lock, control socket
    interactive-ada/
"""

import fcntl
import os
import stat
from pathlib import Path


class StateError(Exception):
    """The state directory cannot be used."""


class AlreadyRunning(StateError):
    """The agent is running already."""


_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither by a link, nor waiting at a pipe
_SHARED = 0o1777  # as /tmp: everyone may add, nobody may remove what is another's


def shared_directory(path: Path) -> Path:
    """Make a folder that the agents of all users may write to; return it.

    Raises:
        StateError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0)  # at once in its mode: a crash must not leave it closed
        try:
            path.mkdir(mode=_SHARED, exist_ok=True)
        finally:
            os.umask(mask)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return path


def private_directory(path: Path) -> Path:
    """Make a folder that is ours alone; return it.

    Raises:
        StateError: it cannot be made, or somebody else could have put something into it.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StateError(f"PCM_STATE_DIR: {path} is not a folder of this user's alone (mode 0700)")
    return path


def lock(directory: Path) -> int:
    """Take the lock of an agent's folder for as long as this process lives; return its file.

    Raises:
        AlreadyRunning: another process holds it.
        StateError: the folder cannot be written to.
    """
    path = directory / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: is no plain file")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        raise AlreadyRunning(
            f"the agent of {directory} is running already (process {holder})"
        ) from None
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # the disk is full, say
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return file
