"""Times as people read them: on the clock of the machine they sit at, and from now."""

from datetime import UTC, datetime

from schemas.text import counted

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_DAYS_ALONE = 3 * 86400


def local(at: float | None, *, seconds: bool = True) -> str:
    """Return a time, in seconds since the epoch, on this machine's clock, with its zone."""
    if at is None:
        return ""
    form = "%Y-%m-%d %H:%M:%S %Z" if seconds else "%Y-%m-%d %H:%M %Z"
    return f"{datetime.fromtimestamp(at, UTC).astimezone():{form}}"


def span(seconds: float) -> str:
    """Return a duration in its two largest units, such as 2 h 5 min."""
    left = abs(round(seconds))
    if left >= _DAYS_ALONE:
        return f"{left // 86400:,} days"
    parts = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            name = {1: "day"}.get(count, "days") if unit == "d" else unit
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def age(at: float, now: float) -> str:
    """Return how long ago a time was, in its largest unit alone, such as `7 min`."""
    past = round(now - at)
    if past < 0:
        return f"in {age(now, at)}"
    for unit, size in _UNITS:
        if count := past // size:
            return counted(count, "day") if unit == "d" else f"{count} {unit}"
    return "now"


def relative(at: float, now: float) -> str:
    """Return how far a time is from now, such as `in 2 h 5 min` or `3 days ago`."""
    if abs(at - now) < 1:
        return "now"
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def moment(at: float, now: float) -> str:
    """Return a time on this machine's clock, and how far it is from now."""
    return f"{local(at, seconds=False)} ({relative(at, now)})"


def iso(at: float | None) -> str | None:
    """Return a time as JSON has it: ISO 8601, in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
