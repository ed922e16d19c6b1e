"""Whether the workstation's service agent is there, as its users' agents can see it.

Its own folder is closed to them: it holds the lock of a file that lies beside the folder, for as
long as its process lives. What the file tells is for people to read; nothing is decided by it.
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
_SAFELY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ATTEMPTS = 20
_PAUSE = 0.01


def announce(state_dir: Path) -> int | None:
    """Let the users' agents see this service agent, if that is possible; return the file."""
    path = state_dir / _NAME
    try:
        file = _made(path)
        for _ in range(_ATTEMPTS):
            with suppress(BlockingIOError):  # somebody looks, for an instant
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            time.sleep(_PAUSE)
        os.close(file)
        reason = "somebody holds its lock"
    except OSError as error:
        reason = error.strerror or str(error)
    _log.warning("service.unseen", path=str(path), reason=reason)
    return None


def is_up(state_dir: Path) -> bool:
    """Whether a service agent runs on this workstation."""
    try:
        file = os.open(state_dir / _NAME, _SAFELY)
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


def _made(path: Path) -> int:
    with suppress(FileNotFoundError):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            set_aside(path)
    # Not by one O_CREAT: the kernel may refuse that for another user's file in an open folder.
    with suppress(FileNotFoundError):
        return os.open(path, _SAFELY)
    file = os.open(path, _SAFELY | os.O_CREAT | os.O_EXCL, 0o644)
    os.fchmod(file, 0o644)  # whatever our umask
    return file
