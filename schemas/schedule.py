"""A job that repeats: its occurrences, each a job whose id follows from schedule and time."""

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

from schemas.job import ID_TIME, Job, whoami
from schemas.message import Message
from schemas.names import Name, Text
from schemas.text import counted
from schemas.times import (
    FIRST_CLOCK,
    LAST_CLOCK,
    LONGEST_ZONE,
    Duration,
    Instant,
    WallClock,
    at_wall,
    find_zone,
    on_first_clock,
    on_last_clock,
)

_AHEAD = timedelta(hours=1)  # so that also agents there have a job in time
LEAD = FIRST_CLOCK + _AHEAD + LAST_CLOCK
"""How long after it was sent in time the last clock on a wall shows an occurrence's time."""
_NO_TIMES = ("offer_at", "mandatory_at", "expires_at")
_NOT_ASKED = {"created_at", "sender", "version"}


def _check_cron(text: str) -> str:
    fields = text.split()
    why = "it never comes"
    try:
        if len(fields) == 5:  # noqa: PLR2004 - minutes are fine enough
            next(CronSim(text, datetime(2026, 1, 1)))  # noqa: DTZ001 - any
            return " ".join(fields)
        why = f"has {counted(len(fields), 'field')}, not 5"
    except (CronSimError, ValueError) as error:  # the latter of figures beyond all bounds
        why = str(error)
    except StopIteration:
        pass
    raise ValueError(
        f"{text[:80]!r}: {why[:80]}; write MINUTE HOUR DAY MONTH WEEKDAY, such as '0 2 * * 0' for"
        " 02:00 on Sundays"
    )


def _check_zone(name: str) -> str:
    if find_zone(name) is None:
        shown = name if len(name) <= LONGEST_ZONE else f"{name[:LONGEST_ZONE]}..."
        raise ValueError(f"{shown!r} is no time zone: write such as Europe/Berlin or UTC")
    return name


class Schedule(Message):
    """When a job repeats, and what it is.

    Its times are those that cron's five fields name, in a zone or on each workstation's clock on
    the wall: one that the clock skips is the first instant after the gap, one that it shows twice
    is the first of the two. Where several so come to the same instant, the last of them counts.
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
        """Yield the occurrences that are to be sent after an instant, in their order."""
        if self.zone is None:
            start = after.astimezone(UTC) + FIRST_CLOCK + _AHEAD
        else:
            start = after.astimezone(ZoneInfo(self.zone))
        every = (Occurrence(self, local) for local in CronSim(self.repeat, _naive(start)))
        later = dropwhile(lambda occurrence: occurrence.send_at <= after, every)
        for _, at_once in groupby(later, key=lambda occurrence: occurrence.send_at):
            *_, last = at_once
            yield last

    def times(self, after: datetime, until: datetime) -> Iterator["Occurrence"]:
        """Yield the occurrences that are to be sent after one instant and up to another."""
        return takewhile(lambda occurrence: occurrence.send_at <= until, self.coming(after))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None, fold=0)


@dataclass(frozen=True, repr=False)
class Occurrence:
    """One occurrence of a schedule, at a time on the clock."""

    schedule: Schedule
    local: datetime

    def __repr__(self) -> str:
        return f"<Occurrence {self.schedule.name} {self.local:%Y-%m-%d %H:%M}>"

    @cached_property
    def instant(self) -> datetime | None:
        """When it is; None where each workstation's own clock says it."""
        zone = self.schedule.zone
        return None if zone is None else at_wall(self.local, ZoneInfo(zone))

    @property
    def here(self) -> datetime:
        """When it is by this machine's clock, where each workstation's own says it."""
        return self.instant or at_wall(self.local)

    @property
    def begins_at(self) -> datetime:
        """When it is by the first clock on a wall that shows its time."""
        return self.instant or on_first_clock(self.local)

    @property
    def send_at(self) -> datetime:
        """When it is to be sent: before the first clock on a wall shows its time."""
        return self.instant or self.begins_at - _AHEAD

    @property
    def ends_at(self) -> datetime | None:
        """When it has expired everywhere; None: never."""
        if self.schedule.expires_after is None:
            return None
        last = self.instant or on_last_clock(self.local)
        return last + self.schedule.expires_after

    @property
    def id(self) -> str:
        """The id of its job: the same by whomever it is sent."""
        # Without what is as always, which a later version may have more of.
        asked = self.schedule.model_dump_json(
            exclude={**dict.fromkeys(_NOT_ASKED, True), "job": {*_NOT_ASKED, "id"}},
            exclude_defaults=True,
        )
        unique = hashlib.sha256(f"{asked}\0{self.local.isoformat()}".encode()).hexdigest()
        return f"{self.send_at:{ID_TIME}}-{unique[:10]}"

    def job(self) -> Job:
        """Return its job, as it is to be sent."""
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
    """A schedule has no more occurrences; those that were sent go on."""

    kind: Literal["schedule_removal"] = "schedule_removal"
    name: Name
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
