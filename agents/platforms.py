"""What this machine is, in the words of a command's platforms; and what it can run out of."""

import errno
import platform

from schemas.command import plain_machine

NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say that no file at all can be opened now."""
NO_ROOM = NO_FILES | {errno.EAGAIN, errno.ENOSPC}
"""Errors that say that no process can be started now."""

_SYSTEMS = {"darwin": "macos"}


def system() -> str:
    """Return this machine's system, such as linux."""
    name = platform.system().lower()
    return _SYSTEMS.get(name, name)


def machine() -> str:
    """Return what kind of machine this is, such as x86_64."""
    return plain_machine(platform.machine())


def here() -> frozenset[str]:
    """Return the platforms that this machine answers to, such as linux and linux/x86_64."""
    return frozenset({system(), f"{system()}/{machine()}"})
