"""Times and durations as people read and write them."""

import math
import re
from datetime import UTC, datetime, timedelta

from schemas.times import parse_duration

MINUTE, HOUR, DAY = 60, 3600, 86400
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")


def left(seconds: float) -> str:
    """Return how much time is left, in two units at most."""
    whole = max(0, math.ceil(seconds))
    if whole >= DAY:
        return f"{whole // DAY} d {whole % DAY // HOUR:02} h"
    if whole >= HOUR:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
    if whole >= MINUTE:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    return f"{whole} s"


def length(seconds: float) -> str:
    """Return a duration that is told, not counted down: without what is zero."""
    whole = round(seconds)
    parts = (
        ("{n} d", whole // DAY),
        ("{n} h", whole % DAY // HOUR),
        ("{n} min", whole % HOUR // MINUTE),
        ("{n} s", whole % MINUTE),
    )
    told = [text.format(n=count) for text, count in parts if count]
    return " ".join(told[:2]) or f"{0} s"


def clock(at: float, now: float) -> str:
    """Return a time on the user's clock; with its day if that is not today."""
    moment, today = _local(at), _local(now)
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    if moment.year == today.year:
        return f"{moment:%d %b %H:%M}"
    return f"{moment:%d %b %Y}"


def read(text: str, now: float) -> float:
    """Return the time that a user wrote: 14:30, or 45m, 2h and the like from now on.

    Raises:
        ValueError: it is neither.
    """
    words = text.strip().lower().replace(" ", "").replace("min", "m")
    try:
        if found := _CLOCK.fullmatch(words):
            hour, minute = map(int, found.groups())
            at = _local(now).replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (at if at.timestamp() > now else at + timedelta(days=1)).timestamp()
        span: timedelta = parse_duration(words.removeprefix("+"))
        return now + span.total_seconds()
    except ValueError:
        raise ValueError("Write a time such as 14:30, or how long, such as 45m or 2h.") from None


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC).astimezone()
