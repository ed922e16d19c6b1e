"""The workstation's clock: notices a change of its zone, a clock set back, and sleep.

The process reads its zone once, and its timers stand still while the machine sleeps. So the agent
looks before it decides, at least every ten seconds while a job waits for its time.
"""

import math
import os
import time
from typing import NamedTuple

from agents.platforms import zone_file
from broker.log import get_logger
from schemas.maintenance_windows import forget_local_windows

_log = get_logger()
_STEP = 1.0  # seconds; smaller changes of the clock and shorter sleeps are ignored


class ClockChanges(NamedTuple):
    """What changed since the last look."""

    set_back: bool = False
    zone: bool = False
    slept: bool = False

    def __bool__(self) -> bool:
        return any(self)


class Clock:
    """Looks for changes of the clock."""

    def __init__(self) -> None:
        self._offset = -math.inf  # wall clock minus time awake
        self._asleep = _seconds_asleep()
        self._zone = _read_zone()

    def look(self) -> ClockChanges:
        """Return what changed since the last look; local times are right from now on."""
        return ClockChanges(self._was_set_back(), self._has_new_zone(), self._slept())

    def _was_set_back(self) -> bool:
        offset = time.time() - time.monotonic()
        difference = self._offset - offset
        self._offset = offset if difference > _STEP else max(self._offset, offset)
        if difference > _STEP:
            _log.warning("clock.set_back", seconds=round(difference))
            return True
        return False

    def _has_new_zone(self) -> bool:
        zone = _read_zone()
        if zone == self._zone:
            return False
        self._zone = zone
        _reset_zone()
        forget_local_windows()
        _log.info("clock.zone_changed", zone=time.tzname[0])
        return True

    def _slept(self) -> bool:
        asleep = _seconds_asleep()
        seconds = asleep - self._asleep
        self._asleep = asleep
        if seconds <= _STEP:
            return False
        _log.info("clock.slept", seconds=round(seconds))
        return True


def _seconds_asleep() -> float:
    """Return for how long the machine has slept since its boot; 0 if the system does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    # In this order: a pause of this process between the two calls is not taken for sleep.
    boot_time = time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot_time - time.clock_gettime(time.CLOCK_MONOTONIC)


def _read_zone() -> object:
    """Return a value that changes with the zone's file."""
    try:
        status = zone_file().stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


def _reset_zone() -> None:
    """Have the process read its zone again."""
    name = os.environ.get("TZ")
    if name is not None:  # the C library reads the file of a name again only for another name
        os.environ["TZ"] = "UTC0"
        time.tzset()
        os.environ["TZ"] = name
    time.tzset()
