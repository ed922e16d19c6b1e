"""Maintenance windows: the local times at which jobs that respect them can start."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Annotated, Any

from pydantic import PlainValidator

from schemas.times import NEVER, at_wall

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(_DAYS)
_WINDOW = re.compile(
    rf"(?:(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?\s+|daily\s+)?"
    r"(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)",
    re.IGNORECASE,
)
_DAY_MINUTES = 24 * 60
_EXAMPLES = "write such as Sun 02:00-06:00, Mon-Fri 22:00-04:00 or daily 00:00-24:00"
_DAYS_AHEAD = 24  # each window three times: a clock change can skip one
_ENDLESS = timedelta(days=8).total_seconds()  # windows repeat weekly, so a longer one never ends


@dataclass(frozen=True)
class MaintenanceWindow:
    """A window on some days of the week; begin and end in minutes of the day it begins."""

    days: frozenset[int]
    begin: int
    end: int

    def on(self, day: date, zone: tzinfo | None) -> tuple[float, float] | None:
        """Return its begin and end on a day, in seconds since the epoch; None if it has none."""
        if day.weekday() not in self.days:
            return None
        midnight = datetime.combine(day, time())
        begin, end = (
            at_wall(midnight + timedelta(minutes=minutes), zone).timestamp()
            for minutes in (self.begin, self.end)
        )
        return (begin, end) if begin < end else None  # the clock skipped all of it


@dataclass(frozen=True)
class Windows:
    """The maintenance windows of a workstation; without any, jobs can start at any time."""

    windows: tuple[MaintenanceWindow, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def start(self, earliest: float, duration: float, zone: tzinfo | None = None) -> float:
        """Return the first time from `earliest` on from which a window is open for `duration`.

        That is `earliest` or the begin of a window; NEVER if no window is long enough.
        """
        if not self.windows:
            return earliest
        today = datetime.fromtimestamp(earliest, UTC).astimezone(zone).date()
        yesterday = today - timedelta(days=1)  # its window can still be open
        for begin, end in _spans(self, yesterday, zone):
            start = max(begin, earliest)
            if start + duration <= end or end - begin > _ENDLESS:
                return start
        return NEVER


@lru_cache
def _spans(windows: Windows, first: date, zone: tzinfo | None) -> list[tuple[float, float]]:
    """Return the open times from a day on, in order; adjacent ones are merged."""
    days = (first + timedelta(days=number) for number in range(_DAYS_AHEAD))
    found = sorted(
        span for day in days for window in windows.windows if (span := window.on(day, zone))
    )
    spans = found[:1]
    for begin, end in found[1:]:
        last_begin, last_end = spans[-1]
        if begin <= last_end:
            spans[-1] = (last_begin, max(end, last_end))
        else:
            spans.append((begin, end))
    return spans


def forget_local_windows() -> None:
    """Forget the open times that were computed before this machine's zone changed."""
    _spans.cache_clear()


NO_WINDOWS = Windows()


def parse_windows(text: str) -> Windows:
    """Parse comma-separated windows; no text means no windows.

    Raises:
        ValueError: a window is invalid.
    """
    if not text.strip():
        return NO_WINDOWS
    parts = [" ".join(part.split()) for part in text.split(",")]
    return Windows(tuple(map(_window, parts)), ", ".join(parts))


def _window(text: str) -> MaintenanceWindow:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a maintenance window: {_EXAMPLES}")
    begin, end = _minutes(match["begin"], text), _minutes(match["end"], text)
    if begin in {end, _DAY_MINUTES}:
        raise ValueError(f"{text!r} is empty: {_EXAMPLES}")
    return MaintenanceWindow(
        _days(match["first"], match["last"]), begin, end + _DAY_MINUTES * (end < begin)
    )


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = _DAYS.index(first.lower())
    end = begin if last is None else _DAYS.index(last.lower())
    return frozenset((begin + number) % 7 for number in range((end - begin) % 7 + 1))


def _minutes(clock: str, text: str) -> int:
    hours, minutes = map(int, clock.split(":"))
    if minutes >= 60 or hours * 60 + minutes > _DAY_MINUTES:  # noqa: PLR2004 - of an hour
        raise ValueError(f"{text!r}: {clock} is not a time of day: {_EXAMPLES}")
    return hours * 60 + minutes


def _validate(value: Any) -> Windows:
    return value if isinstance(value, Windows) else parse_windows(str(value))


WindowsSetting = Annotated[Windows, PlainValidator(_validate)]
"""The type of a setting with windows."""
