"""Schedules and their occurrences: each is a job whose id follows from schedule and time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import dropwhile, groupby, takewhile
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, model_validator

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.job import ID_TIME, Job, whoami
from schemas.text import counted
from schemas.times import (
    FIRST_CLOCK,
    LAST_CLOCK,
    MAX_ZONE_LENGTH,
    Duration,
    Instant,
    WallClock,
    at_wall,
    find_zone,
    on_first_clock,
    on_last_clock,
)

_SEND_AHEAD = timedelta(hours=1)  # so that agents in the first time zone get the job in time
LEAD = FIRST_CLOCK + _SEND_AHEAD + LAST_CLOCK
"""The time from the sending of an occurrence until it is due in the last time zone."""
_TIME_FIELDS = ("offer_at", "mandatory_at", "expires_at")
_NOT_IN_ID = {"created_at", "sender", "version"}


def _check_cron(text: str) -> str:
    fields = text.split()
    reason = "has no occurrence"
    try:
        if len(fields) == 5:  # noqa: PLR2004 - cron has no seconds
            next(CronSim(text, datetime(2026, 1, 1)))  # noqa: DTZ001 - any
            return " ".join(fields)
        reason = f"has {counted(len(fields), 'field')}, not 5"
    except (CronSimError, ValueError) as error:  # ValueError: a number is out of range
        reason = str(error)
    except StopIteration:
        pass
    raise ValueError(
        f"{text[:80]!r}: {reason[:80]}; write MINUTE HOUR DAY MONTH WEEKDAY, such as '0 2 * * 0'"
        " for 02:00 on Sundays"
    )


def _check_zone(name: str) -> str:
    if find_zone(name) is None:
        shown = name if len(name) <= MAX_ZONE_LENGTH else f"{name[:MAX_ZONE_LENGTH]}..."
        raise ValueError(f"{shown!r} is not a time zone: write such as Europe/Berlin or UTC")
    return name


class Schedule(Message):
    """A job that repeats.

    Its times are those of cron's five fields, in a time zone or by each workstation's wall clock.
    A time that the clock skips is the first instant after the gap; one that it shows twice is the
    first of the two. Of several times at the same instant, the last counts.
    """

    kind: Literal["schedule"] = "schedule"
    name: Name
    repeat: Annotated[str, AfterValidator(_check_cron)] = Field(
        description="cron's five fields: minute, hour, day, month, weekday"
    )
    zone: Annotated[str, AfterValidator(_check_zone)] | None = Field(
        default=None, description="such as Europe/Berlin; null: each workstation's own clock"
    )
    missed: Literal["once", "skip"] = Field(
        default="once",
        description="occurrences that were due while no scheduler ran: once: the last of them is"
        " sent late; skip: none is sent",
    )
    overlap: Literal["skip", "queue", "allow"] = Field(
        default="skip",
        description="an occurrence that is due while an earlier one runs on some workstation: skip:"
        " is not sent; queue: is sent when that has ended; allow: is sent",
    )
    job: Job = Field(description="the template of the occurrences, with their own ids and times")
    mandatory_after: Duration | None = Field(
        default=None, description="seconds from the occurrence to its mandatory time"
    )
    expires_after: Duration | None = Field(
        default=None, description="seconds from the occurrence to its expiry"
    )
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _has_no_times(self) -> Self:
        for name in _TIME_FIELDS:
            if getattr(self.job, name) is not None:
                raise ValueError(
                    f"job.{name}: each occurrence has its own times; use mandatory_after and"
                    " expires_after"
                )
        if self.mandatory_after is not None and self.mandatory_after < timedelta(0):
            raise ValueError("mandatory_after: must be 0 or more")
        if self.expires_after is not None:
            least = self.mandatory_after or timedelta(0)
            if self.expires_after <= least:
                raise ValueError("expires_after: must be more than 0, and than mandatory_after")
        return self

    def explain(self) -> str:
        """Return its times in words, such as `At 02:00 on Sunday`."""
        return CronSim(self.repeat, datetime(2026, 1, 1)).explain()  # noqa: DTZ001 - any

    def coming(self, after: datetime) -> Iterator["Occurrence"]:
        """Yield the occurrences to send after an instant, in order."""
        if self.zone is None:
            start = after.astimezone(UTC) + FIRST_CLOCK + _SEND_AHEAD
        else:
            start = after.astimezone(ZoneInfo(self.zone))
        every = (Occurrence(self, local) for local in CronSim(self.repeat, _naive(start)))
        later = dropwhile(lambda occurrence: occurrence.send_at <= after, every)
        for _, simultaneous in groupby(later, key=lambda occurrence: occurrence.send_at):
            *_, last = simultaneous
            yield last

    def times(self, after: datetime, until: datetime) -> Iterator["Occurrence"]:
        """Yield the occurrences to send after one instant and up to another."""
        return takewhile(lambda occurrence: occurrence.send_at <= until, self.coming(after))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None, fold=0)


@dataclass(frozen=True, repr=False)
class Occurrence:
    """One occurrence of a schedule, at a local time."""

    schedule: Schedule
    local: datetime

    def __repr__(self) -> str:
        return f"<Occurrence {self.schedule.name} {self.local:%Y-%m-%d %H:%M}>"

    @cached_property
    def instant(self) -> datetime | None:
        """Its time; None if it depends on each workstation's clock."""
        zone = self.schedule.zone
        return None if zone is None else at_wall(self.local, ZoneInfo(zone))

    @property
    def here(self) -> datetime:
        """Its time; by this machine's clock if it depends on each workstation's."""
        return self.instant or at_wall(self.local)

    @property
    def begins_at(self) -> datetime:
        """Its time in the first time zone."""
        return self.instant or on_first_clock(self.local)

    @property
    def send_at(self) -> datetime:
        """The time to send it: before it is due in the first time zone."""
        return self.instant or self.begins_at - _SEND_AHEAD

    @property
    def ends_at(self) -> datetime | None:
        """The time at which it has expired in all time zones; None for never."""
        if self.schedule.expires_after is None:
            return None
        last = self.instant or on_last_clock(self.local)
        return last + self.schedule.expires_after

    @property
    def id(self) -> str:
        """The id of its job, the same for every sender."""
        # Without defaults, so that new fields of a later version leave ids unchanged.
        content = self.schedule.model_dump_json(
            exclude={**dict.fromkeys(_NOT_IN_ID, True), "job": {*_NOT_IN_ID, "id"}},
            exclude_defaults=True,
        )
        unique = hashlib.sha256(f"{content}\0{self.local.isoformat()}".encode()).hexdigest()
        return f"{self.send_at:{ID_TIME}}-{unique[:10]}"

    def job(self) -> Job:
        """Return its job."""
        schedule = self.schedule
        times = {
            "offer_at": timedelta(0),
            "mandatory_at": schedule.mandatory_after,
            "expires_at": schedule.expires_after,
        }
        changes = {
            "id": self.id,
            "name": schedule.job.name or schedule.name,
            "schedule": schedule.name,
            "overlap": None if schedule.overlap == "allow" else schedule.overlap,
            "sender": schedule.sender,
            "created_at": datetime.now(UTC),
            **{name: self._moment(after) for name, after in times.items() if after is not None},
        }
        return Job.model_validate({**schedule.job.model_dump(), **changes})

    def _moment(self, after: timedelta) -> datetime | WallClock:
        if self.instant is None:
            return WallClock(local=self.local + after)
        return self.instant + after


class ScheduleRemoval(Message):
    """Ends a schedule; occurrences that were sent are not affected."""

    kind: Literal["schedule_removal"] = "schedule_removal"
    name: Name
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
