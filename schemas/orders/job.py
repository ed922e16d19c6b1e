"""Jobs and cancellations."""

import getpass
import hashlib
import secrets
import socket
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.message import Message
from schemas.names import Name, Target, Text, check_name, everyone
from schemas.orders.command import Command
from schemas.orders.package import PackageCondition, PackageReference
from schemas.times import Duration, Instant, Moment, WallClock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_TIME = "%Y%m%d-%H%M%S"
_MAX_INTERVAL = timedelta(days=365)
DEFAULT_LIFETIME = timedelta(days=30)
"""How long a job can start if it names no expiry: as long as the broker keeps an agent's queue."""
_FIRST_YEAR = 2026  # the year of the first ids of this form


class Context(StrEnum):
    """Whether users see the job; the first word of its routing key."""

    BACKGROUND = "background"
    FOREGROUND = "foreground"


class Requirement(StrEnum):
    """Whether the job runs without the user's consent; the second word of its routing key."""

    MANDATORY = "mandatory"
    OPTIONAL = "optional"


def new_job_id() -> str:
    """Return an id that never repeats: the second in UTC, and 50 random bits."""
    bits = secrets.randbits(50)
    unique = "".join(_ALPHABET[bits >> place & 31] for place in range(0, 50, 5))
    return f"{datetime.now(UTC):{ID_TIME}}-{unique}"


def id_time(job_id: str) -> datetime | None:
    """Return the time in an id of `new_job_id`; None for other ids."""
    try:
        made = datetime.strptime(job_id[:15], ID_TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return made if made.year >= _FIRST_YEAR else None


@cache
def whoami() -> str:
    """Return `user@host`, the sender that agents and users see; not a proof of identity."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _now() -> datetime:
    return datetime.now(UTC)


JobId = Annotated[str, AfterValidator(check_name)]


class Job(Message):
    """One command, its targets, and its times.

    A job with a mandatory time is mandatory; without one it is optional. Before `offer_at`
    (default: immediately) it is invisible. At `mandatory_at` it runs, even without the user's
    consent. After `expires_at` it is never shown and never started; default: 30 days after the last
    of its times.
    """

    kind: Literal["job"] = "job"
    id: JobId = Field(default_factory=new_job_id)
    name: Text = Field(default="", max_length=200, description="for people; default: the command")
    comment: Text = Field(
        default="", max_length=2000, description="the purpose of the job, shown to users"
    )
    command: Command
    package: PackageReference | None = Field(
        default=None, description="the package whose command it is; its files come with it"
    )
    targets: tuple[Target, ...] = Field(min_length=1)
    excluded: tuple[Target, ...] = Field(default=(), description="exceptions from the targets")
    only_if: tuple[PackageCondition, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="runs only where one of these holds, such as installed:NAME<2.1 or"
        " missing:NAME",
    )
    offer_at: Moment | None = None
    mandatory_at: Moment | None = None
    expires_at: Moment | None = None
    supersedes: Name | None = Field(
        default=None,
        description="a key: the job replaces older jobs with the same key that have not started",
    )
    respects_windows: bool = Field(
        default=False,
        description="starts only in a maintenance window of the workstation, with enough time left"
        " for its timeout",
    )
    max_postponements: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="how often a user can postpone it; default: no limit",
    )
    min_interval: Duration = Field(
        default=timedelta(0), description="the least duration of a postponement, in seconds"
    )
    rerun_of: JobId | None = Field(default=None, description="the job that this one repeats")
    rollout: JobId | None = Field(default=None, description="the rollout of which it is a wave")
    schedule: Name | None = Field(
        default=None, description="the schedule of which it is an occurrence"
    )
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=_now)

    @field_validator("targets", "excluded")
    @classmethod
    def _distinct(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(dict.fromkeys(targets))

    @field_validator("excluded")
    @classmethod
    def _not_everyone(cls, excluded: tuple[Target, ...]) -> tuple[Target, ...]:
        if everyone in excluded:
            raise ValueError("all: the job would have no target left")
        return excluded

    @field_validator("min_interval")
    @classmethod
    def _countable(cls, interval: timedelta) -> timedelta:
        if not timedelta(0) <= interval <= _MAX_INTERVAL:
            raise ValueError(f"must be from 0 to {_MAX_INTERVAL.days} days")
        return interval

    @model_validator(mode="after")
    def _can_be_postponed(self) -> Self:
        settings = {
            "max_postponements": self.max_postponements is not None,
            "min_interval": bool(self.min_interval),
        }
        for name in (name for name, is_set in settings.items() if is_set):
            if self.command.background:
                raise ValueError(f"{name}: a background job cannot be postponed; leave it out")
        if self.max_postponements == 0 and self.min_interval:
            raise ValueError(
                "min_interval: with max_postponements 0 the job cannot be postponed;"
                " leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _runs_in_package(self) -> Self:
        if self.package is not None:
            for field in ("script", "cwd"):
                if getattr(self.command, field) is not None:
                    raise ValueError(
                        f"{field}: a package's command runs in the package's folder; leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        times = {
            name: moment
            for name in ("offer_at", "mandatory_at", "expires_at")
            if (moment := getattr(self, name)) is not None
        }
        if len({isinstance(moment, WallClock) for moment in times.values()}) > 1:
            raise ValueError(f"{', '.join(times)}: all must be instants, or all wall-clock times")
        plain = {
            name: moment.local if isinstance(moment, WallClock) else moment
            for name, moment in times.items()
        }
        for earlier, later in (
            ("offer_at", "mandatory_at"),
            ("offer_at", "expires_at"),
            ("mandatory_at", "expires_at"),
        ):
            if earlier in plain and later in plain and plain[earlier] >= plain[later]:
                if later == "mandatory_at" and plain[earlier] == plain[later]:
                    continue  # the offer begins when the job runs; no contradiction
                raise ValueError(f"{later}: must be after {earlier}")
        if isinstance(self.expires_at, datetime) and self.expires_at <= self.created_at:
            raise ValueError("expires_at: is in the past, so the job could never start")
        return self

    @property
    def expiry(self) -> datetime | WallClock:
        """When it is too late to start it: `expires_at`, or 30 days after the last of its times."""
        if self.expires_at is not None:
            return self.expires_at
        last = self.mandatory_at or self.offer_at or self.created_at
        if isinstance(last, WallClock):
            return WallClock(local=last.local + DEFAULT_LIFETIME)
        return max(last, self.created_at) + DEFAULT_LIFETIME

    @property
    def title(self) -> str:
        """The name of the job, or its package's command, or its command."""
        if self.package is not None and not self.name:
            return f"{self.package} {self.package.command}"
        return self.name or str(self.command)[:80]

    @property
    def context(self) -> Context:
        """The first word of the routing key."""
        return Context.BACKGROUND if self.command.background else Context.FOREGROUND

    @property
    def requirement(self) -> Requirement:
        """The second word of the routing key."""
        return Requirement.OPTIONAL if self.mandatory_at is None else Requirement.MANDATORY

    def digest(self, *, template: bool = False) -> str:
        """Return a hash of the job's content: equal if the same job is sent again, by any sender.

        `template`: leave out the id, for a job from which jobs with their own ids are made.
        """
        excluded: dict[str, Any] = dict.fromkeys(("created_at", "id", "sender", "version"), True)
        # Sealing the same values again gives other bytes.
        excluded["command"] = {"secrets": {"sealed", "keys"}}
        # Without defaults, so that new fields of a later version leave older digests unchanged.
        content = self.model_dump_json(exclude=excluded, exclude_defaults=True)
        job_id = "" if template else self.id
        return hashlib.sha256(f"{job_id}\n{content}".encode()).hexdigest()


class Cancellation(Message):
    """An order to cancel a job: it does not start any more, and is stopped where it runs."""

    kind: Literal["cancellation"] = "cancellation"
    job_id: JobId
    workstations: tuple[Name, ...] = Field(
        default=(), description="only these workstations; default: all that the job reached"
    )
    unsent: bool = Field(
        default=False, description="the job was not published; it counts as not sent"
    )
    reason: Text = Field(default="", max_length=1000)
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=_now)

    def concerns(self, workstation: str) -> bool:
        """Return whether the cancellation applies to a workstation."""
        return not self.workstations or workstation in self.workstations
