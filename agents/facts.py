"""What this machine is, and the groups that its workstation is in by that."""

import os
import platform
from functools import cache
from pathlib import Path

from agents import platforms
from agents.settings import AgentSettings
from schemas import Facts
from schemas.times import find_zone

_CLOCK = Path("/etc/localtime")


@cache
def gather() -> Facts:
    """Return the facts; they are gathered once in a process."""
    return Facts(
        os=platforms.system(),
        arch=platforms.machine(),
        release=_release(),
        python=platform.python_version(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def groups(settings: AgentSettings) -> tuple[str, ...]:
    """Return the groups by which the agent's queue is bound: those given, and those by facts.

    An enrolled agent is bound as it was enrolled.
    """
    return settings.groups if settings.enrolled else settings.groups + gather().groups


def zone() -> str:
    """Return the name of the zone of this machine's clock; nothing where it is not known."""
    given = os.environ.get("TZ")
    if given is None:
        # A copy of a zone's file, which some systems have there, does not tell its name.
        name = os.path.realpath(_CLOCK).partition("/zoneinfo/")[2] if _CLOCK.exists() else "UTC"
    else:
        name = given.removeprefix(":") or "UTC"
    return name if find_zone(name) else ""


def _release() -> str:
    """Return the system's release, such as debian-12; a rolling one has no number."""
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return ""
    return "-".join(filter(None, (told.get("ID"), told.get("VERSION_ID"))))
