"""Maintenance windows: when, on the workstation's clock, jobs that respect them may start."""

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
_WHOLE_DAY = 24 * 60  # minutes
_SHOULD_BE = "write such as Sun 02:00-06:00, Mon-Fri 22:00-04:00 or daily 00:00-24:00"
_AHEAD = 24  # days: three times each window, since a clock that is changed may take one away
_ENDLESS = timedelta(days=8).total_seconds()  # windows repeat each week: this one has no end


@dataclass(frozen=True)
class MaintenanceWindow:
    """A time of some days of the week: minutes of the day on which it begins."""

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
    """The maintenance windows of a workstation; without any, nothing is held back."""

    windows: tuple[MaintenanceWindow, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def start(self, earliest: float, duration: float, zone: tzinfo | None = None) -> float:
        """Return when, from an instant on, something may start that must end in its window.

        That is at once, or when a window begins; NEVER where no window is as long.
        """
        if not self.windows:
            return earliest
        today = datetime.fromtimestamp(earliest, UTC).astimezone(zone).date()
        yesterday = today - timedelta(days=1)  # a window of then may go on
        for begin, end in _spans(self, yesterday, zone):
            start = max(begin, earliest)
            if start + duration <= end or end - begin > _ENDLESS:
                return start
        return NEVER


@lru_cache
def _spans(windows: Windows, first: date, zone: tzinfo | None) -> list[tuple[float, float]]:
    """Return the times from a day on in which one is open, in order; those that touch are one."""
    days = (first + timedelta(days=number) for number in range(_AHEAD))
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


NO_WINDOWS = Windows()


def parse(text: str) -> Windows:
    """Read windows as people write them, parted by commas; none where there is no text.

    Raises:
        ValueError: one of them is wrong.
    """
    if not text.strip():
        return NO_WINDOWS
    parts = [" ".join(part.split()) for part in text.split(",")]
    return Windows(tuple(map(_window, parts)), ", ".join(parts))


def _window(text: str) -> MaintenanceWindow:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no maintenance window: {_SHOULD_BE}")
    begin, end = _minutes(found["begin"], text), _minutes(found["end"], text)
    if begin in {end, _WHOLE_DAY}:
        raise ValueError(f"{text!r} is empty: {_SHOULD_BE}")
    return MaintenanceWindow(
        _days(found["first"], found["last"]), begin, end + _WHOLE_DAY * (end < begin)
    )


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = _DAYS.index(first.lower())
    end = begin if last is None else _DAYS.index(last.lower())
    return frozenset((begin + number) % 7 for number in range((end - begin) % 7 + 1))


def _minutes(clock: str, text: str) -> int:
    hours, minutes = map(int, clock.split(":"))
    if minutes >= 60 or hours * 60 + minutes > _WHOLE_DAY:  # noqa: PLR2004 - of an hour
        raise ValueError(f"{text!r}: {clock} is no time of day: {_SHOULD_BE}")
    return hours * 60 + minutes


def _read(value: Any) -> Windows:
    return value if isinstance(value, Windows) else parse(str(value))


WindowsSetting = Annotated[Windows, PlainValidator(_read)]
"""Windows as a setting."""
