"""Shows the users' agents whether the workstation's service agent runs.

The service agent holds the lock of a file in the shared state directory until its process ends,
since its own folder is private. The lock is only shown to users; no decision depends on it.
"""

import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from agents.store.state_folder import set_aside
from broker.log import get_logger

_log = get_logger()
_NAME = "service.up"
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ATTEMPTS = 20
_PAUSE = 0.01


def announce(state_dir: Path) -> int | None:
    """Lock the service agent's liveness file; return the file descriptor, None on failure."""
    path = state_dir / _NAME
    try:
        file = _open_or_create(path)
        if lock_exclusively(file):
            return file
        os.close(file)
        reason = "another process holds its lock"
    except OSError as error:
        reason = error.strerror or str(error)
    _log.warning("service.unannounced", path=str(path), reason=reason)
    return None


def lock_exclusively(file: int) -> bool:
    """Lock a file that other agents may be testing for a moment; return whether it is locked."""
    for _ in range(_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE)
    return False


def is_up(state_dir: Path) -> bool:
    """Whether a service agent runs on this workstation."""
    try:
        file = os.open(state_dir / _NAME, _OPEN_FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return stat.S_ISREG(os.fstat(file).st_mode)
    else:
        return False
    finally:
        os.close(file)


def _open_or_create(path: Path) -> int:
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            set_aside(path)
    # First without O_CREAT: the kernel may refuse it for another user's file in the folder.
    with suppress(FileNotFoundError):
        return os.open(path, _OPEN_FLAGS)
    file = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
    os.fchmod(file, 0o644)  # independent of the umask
    return file
