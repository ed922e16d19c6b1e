"""This machine's platforms, and the errors that mean it has run out of resources."""

import errno
import platform

from schemas.orders.command import plain_machine

NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that mean that no file can be opened now."""
NO_RESOURCES = NO_FILES | {errno.EAGAIN, errno.ENOSPC}
"""Errors that mean that no process can be started now."""

_SYSTEMS = {"darwin": "macos"}


def system() -> str:
    """Return this machine's system, such as linux."""
    name = platform.system().lower()
    return _SYSTEMS.get(name, name)


def machine() -> str:
    """Return this machine's architecture, such as x86_64."""
    return plain_machine(platform.machine())


def names() -> frozenset[str]:
    """Return this machine's platforms, such as linux and linux/x86_64."""
    return frozenset({system(), f"{system()}/{machine()}"})
