"""Format times for people, in the local time zone and relative to now; and for JSON."""

from datetime import UTC, datetime

from schemas.text import counted

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_DAYS_ONLY = 3 * 86400


def local(at: float | None, *, seconds: bool = True) -> str:
    """Format a time, in seconds since the epoch, in the local time zone."""
    if at is None:
        return ""
    format_ = "%Y-%m-%d %H:%M:%S %Z" if seconds else "%Y-%m-%d %H:%M %Z"
    return f"{datetime.fromtimestamp(at, UTC).astimezone():{format_}}"


def span(seconds: float) -> str:
    """Format a duration in its two largest units, such as `2 h 5 min`."""
    rest = abs(round(seconds))
    if rest >= _DAYS_ONLY:
        return f"{rest // 86400:,} days"
    parts = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            name = {1: "day"}.get(count, "days") if unit == "d" else unit
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def age(at: float, now: float) -> str:
    """Format how long ago a time was, in its largest unit only, such as `7 min`."""
    seconds = round(now - at)
    if seconds < 0:
        return f"in {age(now, at)}"
    for unit, size in _UNITS:
        if count := seconds // size:
            return counted(count, "day") if unit == "d" else f"{count} {unit}"
    return "now"


def relative(at: float, now: float) -> str:
    """Format a time relative to now, such as `in 2 h 5 min` or `3 days ago`."""
    if abs(at - now) < 1:
        return "now"
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def moment(at: float, now: float) -> str:
    """Format a time in the local time zone and relative to now."""
    return f"{local(at, seconds=False)} ({relative(at, now)})"


def iso(at: float | None) -> str | None:
    """Format a time for JSON: ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
