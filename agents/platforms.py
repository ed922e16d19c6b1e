"""What this machine is, in the words of a command's platforms; and what it can run out of."""

import errno
import platform

NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say that no file at all can be opened now."""
NO_ROOM = NO_FILES | {errno.EAGAIN, errno.ENOSPC}
"""Errors that say that no process can be started now."""

_SYSTEMS = {"darwin": "macos"}


def here() -> frozenset[str]:
    """Return the platforms that this machine answers to, such as linux and linux/x86_64."""
    system = platform.system().lower()
    system = _SYSTEMS.get(system, system)
    return frozenset({system, f"{system}/{platform.machine().lower()}"})
