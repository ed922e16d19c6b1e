"""Format and parse times and durations for users."""

import math
import re
from datetime import UTC, datetime, timedelta

from schemas.times import parse_duration

MINUTE, HOUR, DAY = 60, 3600, 86400
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")


def remaining(seconds: float) -> str:
    """Format a countdown: two units at most, zeros included."""
    whole = max(0, math.ceil(seconds))
    if whole >= DAY:
        return f"{whole // DAY} d {whole % DAY // HOUR:02} h"
    if whole >= HOUR:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
    if whole >= MINUTE:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    return f"{whole} s"


def duration(seconds: float) -> str:
    """Format a duration: two units at most, without zeros."""
    whole = round(seconds)
    parts = (
        ("{n} d", whole // DAY),
        ("{n} h", whole % DAY // HOUR),
        ("{n} min", whole % HOUR // MINUTE),
        ("{n} s", whole % MINUTE),
    )
    units = [text.format(n=count) for text, count in parts if count]
    return " ".join(units[:2]) or f"{0} s"


def clock(at: float, now: float) -> str:
    """Format a local time; with its date if that is not today."""
    moment, today = _local(at), _local(now)
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    if moment.year == today.year:
        return f"{moment:%d %b %H:%M}"
    return f"{moment:%d %b %Y}"


def parse_time(text: str, now: float) -> float:
    """Parse a time such as 14:30, or a duration from now such as 45m or 2h.

    Raises:
        ValueError: the text is neither.
    """
    compact = text.strip().lower().replace(" ", "").replace("min", "m")
    try:
        if match := _CLOCK.fullmatch(compact):
            hour, minute = map(int, match.groups())
            at = _local(now).replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (at if at.timestamp() > now else at + timedelta(days=1)).timestamp()
        delay: timedelta = parse_duration(compact.removeprefix("+"))
        return now + delay.total_seconds()
    except ValueError:
        text = "Enter a time such as 14:30, or a duration such as 45m or 2h."
        raise ValueError(text) from None


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC).astimezone()
