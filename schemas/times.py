"""Instants, wall-clock times and durations, and their text forms."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    NaiveDatetime,
    PlainSerializer,
    Tag,
    WithJsonSchema,
)

NEVER = float("inf")
"""The time that means never, in seconds since the epoch."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MAX_SECONDS = 100 * 365 * 86400.0
_MAX_TEXT_LENGTH = 100
MAX_ZONE_LENGTH = 100
_ZONE = re.compile(rf"[A-Za-z0-9_+/-]{{1,{MAX_ZONE_LENGTH}}}")
_YEARS = range(1970, 9000)  # supported by every platform's clock
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> Any:
    """Return text such as `30s`, `5m`, `1h30m` or a number of seconds as a timedelta.

    Any other value is returned unchanged, for the model to validate.

    Raises:
        ValueError: the text is not a duration.
    """
    if isinstance(value, str):
        # The search takes quadratic time, so long texts are rejected first.
        parts = _DURATION.findall(value) if len(value) <= _MAX_TEXT_LENGTH else []
        if "".join(number + unit for number, unit in parts) != value or not parts:
            raise ValueError(
                f"{value[:_MAX_TEXT_LENGTH]!r} is not a duration: write 30s, 5m, 2h or 1h30m"
            )
        value = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= _MAX_SECONDS:  # in this form it is true for NaN, too
            raise ValueError("is not a supported duration")
        return timedelta(seconds=value)
    if isinstance(value, bool):
        raise ValueError("is not a duration: write 30s, or a number of seconds")  # noqa: TRY004
    return value


def duration_text(value: timedelta) -> str:
    """Return a duration in the form of `parse_duration`, such as 1h30m."""
    seconds = value.total_seconds()
    parts = []
    for unit in ("d", "h", "m"):
        count, seconds = divmod(seconds, _SECONDS[unit])
        if count:
            parts.append(f"{count:g}{unit}")
    if seconds or not parts:
        parts.append(f"{seconds:g}s")
    return "".join(parts)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(lambda value: value.total_seconds(), return_type=float),
    WithJsonSchema({"type": "number", "description": "seconds", "minimum": 0}),
]


def check_years(value: datetime) -> datetime:
    """Return a time whose year is supported; raise ValueError otherwise."""
    if value.year not in _YEARS:
        raise ValueError(f"the year {value.year} is not from {_YEARS[0]} to {_YEARS[-1]}")
    return value


Instant = Annotated[
    AwareDatetime,
    AfterValidator(lambda value: check_years(value).astimezone(UTC)),
]
"""A point in time, zone-aware; UTC on the wire."""


class WallClock(BaseModel):
    """A time by each workstation's wall clock, such as 02:00 in every time zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local: Annotated[NaiveDatetime, AfterValidator(check_years)]

    def instant(self) -> datetime:
        """Return the instant at which this machine's clock shows the time; see `at_wall`."""
        return at_wall(self.local)


def at_wall(local: datetime, zone: tzinfo | None = None) -> datetime:
    """Return the instant at which a zone's clock (default: this machine's) shows a time.

    A time that the clock skips is the first instant after the gap; one that it shows twice is the
    first of the two.
    """
    stamp = local.replace(tzinfo=zone, fold=0).timestamp()
    shown = datetime.fromtimestamp(stamp, UTC).astimezone(zone).replace(tzinfo=None)
    if shown != local:  # in a gap: Python used the offset before it
        stamp = _transition(stamp - (shown - local).total_seconds(), stamp, zone)
    return datetime.fromtimestamp(stamp, UTC)


FIRST_CLOCK = timedelta(hours=14)
"""The offset of the first time zone, ahead of UTC."""
LAST_CLOCK = timedelta(hours=12)
"""The offset of the last time zone, behind UTC."""


def on_first_clock(local: datetime) -> datetime:
    """Return the instant of a local time in the first time zone."""
    return local.replace(tzinfo=UTC) - FIRST_CLOCK


def on_last_clock(local: datetime) -> datetime:
    """Return the instant of a local time in the last time zone."""
    return local.replace(tzinfo=UTC) + LAST_CLOCK


def find_zone(name: str) -> tzinfo | None:
    """Return the time zone of a name, such as Europe/Berlin; None for an unknown name."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # few programs need it

    # zoneinfo imports a package for each dot in the name, until a RecursionError.
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return None


def _transition(before: float, after: float, zone: tzinfo | None) -> float:
    """Return the second in (before, after] at which a zone changes its offset."""

    def offset(stamp: float) -> timedelta | None:
        return datetime.fromtimestamp(stamp, UTC).astimezone(zone).utcoffset()

    low, high = int(before), int(after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if offset(middle) == offset(after) else (middle, high)
    return high


def _kind(value: Any) -> str:
    return "wall clock" if isinstance(value, (dict, WallClock)) else "instant"


Moment = Annotated[
    Annotated[Instant, Tag("instant")] | Annotated[WallClock, Tag("wall clock")],
    Discriminator(_kind),
]
"""A time of a job: an instant, or a wall-clock time."""


def earliest(moment: datetime | WallClock) -> datetime:
    """Return the instant of a moment in the first time zone."""
    return on_first_clock(moment.local) if isinstance(moment, WallClock) else moment


def latest(moment: datetime | WallClock) -> datetime:
    """Return the instant of a moment in the last time zone."""
    return on_last_clock(moment.local) if isinstance(moment, WallClock) else moment


def parse_moment(text: str, now: datetime) -> datetime | WallClock:
    """Parse a time: ISO 8601 with zone, `now`, `+10m`, or `... local`.

    Raises:
        ValueError: the text has none of these forms.
    """
    if text == "now":
        return now
    if text.startswith("+"):
        delay: timedelta = parse_duration(text[1:])
        return now + delay
    stamp = text.removesuffix(" local")
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time: write 2026-11-30T02:00Z, +10m, now,"
            " or '2026-11-30T02:00 local'"
        ) from None
    if (stamp == text) == (moment.tzinfo is None):
        raise ValueError(
            f"{text!r}: give either a zone (Z or +01:00) or ' local' for each workstation's clock"
        )
    check_years(moment)
    return moment if stamp == text else WallClock(local=moment)
