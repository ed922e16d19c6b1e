"""This machine's platforms, and the errors that mean it has run out of resources."""

import errno
import os
import platform
from pathlib import Path

from schemas.orders.command import plain_machine

NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that mean that no file can be opened now."""
NO_RESOURCES = NO_FILES | {errno.EAGAIN, errno.ENOSPC}
"""Errors that mean that no process can be started now."""

LOCAL_ZONE = Path("/etc/localtime")
ZONES = Path("/usr/share/zoneinfo")

_SYSTEMS = {"darwin": "macos"}


def system() -> str:
    """Return this machine's system, such as linux."""
    name = platform.system().lower()
    return _SYSTEMS.get(name, name)


def machine() -> str:
    """Return this machine's architecture, such as x86_64."""
    return plain_machine(platform.machine())


def zone_file() -> Path:
    """Return the file of the local time zone; it need not exist."""
    name = os.environ.get("TZ")
    return LOCAL_ZONE if name is None else ZONES / name.removeprefix(":")


def platform_names() -> frozenset[str]:
    """Return this machine's platforms, such as linux and linux/x86_64."""
    return frozenset({system(), f"{system()}/{machine()}"})
