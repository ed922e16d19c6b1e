"""Facts about this machine, and the groups that follow from them."""

import os
import platform
from functools import cache

from agents import platforms
from agents.settings import AgentSettings
from schemas import Facts
from schemas.times import find_zone


@cache
def gather_facts() -> Facts:
    """Return the facts; they are gathered once per process."""
    return Facts(
        os=platforms.system(),
        arch=platforms.machine(),
        release=_release(),
        python=platform.python_version(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def groups_with_facts(settings: AgentSettings) -> tuple[str, ...]:
    """Return the groups of the queue's bindings: those of the settings and those from the facts.

    The bindings of an enrolled agent are made at the enrolment.
    """
    return settings.groups if settings.enrolled else settings.groups + gather_facts().groups


def zone() -> str:
    """Return the name of this machine's time zone; an empty text if it is unknown."""
    file = platforms.zone_file()
    if file == platforms.ZONES:
        name = "UTC"  # the variable is empty
    elif file.is_relative_to(platforms.ZONES):
        name = str(file.relative_to(platforms.ZONES))
    else:
        # Unknown if the file is a copy of a zone's file and not a link, as on some systems.
        name = os.path.realpath(file).partition("/zoneinfo/")[2] if file.exists() else "UTC"
    return name if find_zone(name) else ""


def _release() -> str:
    """Return the system's release, such as debian-12; a rolling release has no number."""
    try:
        fields = platform.freedesktop_os_release()
    except OSError:
        return ""
    return "-".join(filter(None, (fields.get("ID"), fields.get("VERSION_ID"))))
