"""A job that repeats: its occurrences, each a job whose id follows from schedule and time."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, model_validator

from schemas.job import ID_TIME, Job, whoami
from schemas.message import Message
from schemas.names import Name, Text
from schemas.times import Duration, Instant, WallClock, at_wall

_FIRST_ZONE = timedelta(hours=14)  # how far a clock on a wall is ahead of UTC at most
_AHEAD = timedelta(hours=1)  # so that also agents there have a job in time
_NO_TIMES = ("offer_at", "mandatory_at", "expires_at")


def _check_cron(text: str) -> str:
    fields = text.split()
    try:
        if len(fields) != 5:  # noqa: PLR2004 - minutes are fine enough
            raise CronSimError("must have five fields")  # noqa: TRY301
        next(CronSim(text, datetime(2026, 1, 1)))  # noqa: DTZ001 - any
    except (CronSimError, StopIteration) as error:
        raise ValueError(
            f"{text!r}: {error or 'never comes'}; write MINUTE HOUR DAY MONTH WEEKDAY, such as"
            " '0 2 * * 0' for 02:00 on Sundays"
        ) from None
    return " ".join(fields)


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError):
        raise ValueError(f"{name!r} is no time zone: write such as Europe/Berlin or UTC") from None
    return name


class Schedule(Message):
    """When a job repeats, and what it is.

    Its times are those that cron's five fields name, in a zone or on each workstation's clock on
    the wall: one that the clock skips is the first instant after the gap, one that it shows twice
    is the first of the two.
    """

    kind: Literal["schedule"] = "schedule"
    name: Name
    repeat: Annotated[str, AfterValidator(_check_cron)] = Field(
        description="cron's five fields: minute, hour, day, month, weekday"
    )
    zone: Annotated[str, AfterValidator(_check_zone)] | None = Field(
        default=None, description="such as Europe/Berlin; none: each workstation's own clock"
    )
    missed: Literal["once", "skip"] = Field(
        default="once",
        description="what becomes of occurrences for which nobody was there to send them: the last"
        " of them is sent late, or none",
    )
    job: Job = Field(description="what each occurrence is; with an id and times of its own")
    mandatory_after: Duration | None = Field(
        default=None, description="seconds from the occurrence to its mandatory time"
    )
    expires_after: Duration | None = Field(
        default=None, description="seconds from the occurrence to its expiry"
    )
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _timeless(self) -> Self:
        for name in _NO_TIMES:
            if getattr(self.job, name) is not None:
                raise ValueError(
                    f"job.{name}: each occurrence has times of its own; use mandatory_after and"
                    " expires_after"
                )
        if self.expires_after is not None:
            least = self.mandatory_after or timedelta(0)
            if self.expires_after <= least:
                raise ValueError("expires_after: must be more than 0, and than mandatory_after")
        return self

    def times(self, after: datetime, until: datetime) -> Iterator["Occurrence"]:
        """Yield the occurrences that are to be sent after one instant and up to another."""
        # One that a clock skips comes later, by up to a day: begin early, and leave out.
        start = (after + _FIRST_ZONE + _AHEAD).replace(tzinfo=None) - timedelta(days=2)
        for local in takewhile(
            lambda time: time <= until.replace(tzinfo=None) + timedelta(days=2),
            CronSim(self.repeat, start.replace(microsecond=0)),
        ):
            occurrence = Occurrence(self, local)
            if after < occurrence.send_at <= until:
                yield occurrence


class Occurrence:
    """One occurrence of a schedule, at a time on the clock."""

    def __init__(self, schedule: Schedule, local: datetime) -> None:
        self.schedule = schedule
        self.local = local

    def __repr__(self) -> str:
        return f"<Occurrence {self.schedule.name} {self.local:%Y-%m-%d %H:%M}>"

    @property
    def instant(self) -> datetime | None:
        """When it is; None where each workstation's own clock says it."""
        zone = self.schedule.zone
        return None if zone is None else at_wall(self.local, ZoneInfo(zone))

    @property
    def send_at(self) -> datetime:
        """When it is to be sent: before the first clock on a wall shows its time."""
        return self.instant or self.local.replace(tzinfo=UTC) - _FIRST_ZONE - _AHEAD

    @property
    def id(self) -> str:
        """The id of its job: the same by whomever it is sent."""
        schedule = self.schedule
        asked = schedule.model_dump_json(exclude={"created_at", "sender", "version", "job"})
        text = f"{asked}\0{schedule.job.digest(template=True)}\0{self.local.isoformat()}"
        unique = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.send_at:{ID_TIME}}-{unique}"

    def job(self) -> Job:
        """Return its job, as it is to be sent."""
        schedule = self.schedule

        def moment(after: timedelta) -> datetime | WallClock:
            if (instant := self.instant) is not None:
                return instant + after
            return WallClock(local=self.local + after)

        times = {
            "offer_at": timedelta(0),
            "mandatory_at": schedule.mandatory_after,
            "expires_at": schedule.expires_after,
        }
        changes = {
            "id": self.id,
            "name": schedule.job.name or schedule.name,
            "schedule": schedule.name,
            "sender": schedule.sender,
            "created_at": datetime.now(UTC),
            **{name: moment(after) for name, after in times.items() if after is not None},
        }
        return Job.model_validate({**schedule.job.model_dump(), **changes})


class ScheduleRemoval(Message):
    """A schedule has no more occurrences; those that were sent go on."""

    kind: Literal["schedule_removal"] = "schedule_removal"
    name: Name
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
