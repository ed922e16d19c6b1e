"""Rollouts: a job that is sent in waves, as long as few workstations fail."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from schemas.message import Message
from schemas.names import Name, Text, workstation
from schemas.orders.job import Job, JobId, new_job_id, whoami
from schemas.times import Duration, Instant

_COUNT = re.compile(r"[0-9]{1,9}|(100|[0-9]{1,2})%")


def check_limit(text: str) -> str:
    """Return a limit of failures as it was written.

    Raises:
        ValueError: it is neither a count nor a percentage.
    """
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{text!r}: write a count such as 3, or a part such as 5%")
    return text


FailureLimit = Annotated[str, AfterValidator(check_limit)]
"""The tolerated failures: a count, or a percentage of the workstations sent to so far."""

_MAX_ID_LENGTH = 50  # the id of a wave is longer by its suffix


class Rollout(Message):
    """The plan of a rollout.

    Each wave is a job whose id follows from the plan. The runner therefore needs no state of its
    own: sending a wave again sends the same job.
    """

    kind: Literal["rollout"] = "rollout"
    id: JobId = Field(default_factory=new_job_id, max_length=_MAX_ID_LENGTH)
    job: Job = Field(description="the template of the waves, which get their own ids and targets")
    waves: tuple[tuple[Name, ...], ...] = Field(min_length=1)
    max_failures: FailureLimit = "0"
    pause: Duration = Field(
        default=timedelta(0), ge=timedelta(0), description="seconds between two waves"
    )
    wave_limit: Duration | None = Field(
        default=None,
        gt=timedelta(0),
        description="seconds after which a wave counts as ended; workstations without an end count"
        " as failures",
    )
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))

    @field_validator("waves")
    @classmethod
    def _each_once(cls, waves: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        names = [name for wave in waves for name in wave]
        if not all(waves):
            raise ValueError("a wave is empty")
        if len(set(names)) < len(names):
            raise ValueError("a workstation is in more than one place")
        return waves

    def wave_id(self, number: int) -> str:
        """Return the id of a wave's job; the first is number 1."""
        return f"{self.id}-w{number}"

    def wave(self, number: int, created_at: datetime | None = None) -> Job:
        """Return a wave's job, created at that time or now; the first is number 1."""
        names = self.waves[number - 1]
        changes = {
            "id": self.wave_id(number),
            "command": self.job.command.narrowed(names),
            "targets": tuple(map(workstation, names)),
            "excluded": (),
            "rollout": self.id,
            "sender": self.sender,
            "created_at": created_at or datetime.now(UTC),
        }
        return Job.model_validate({**self.job.model_dump(), **changes})


class RolloutOrder(Message):
    """An order to a rollout that was started; the newest counts, but an abort is permanent."""

    kind: Literal["rollout_order"] = "rollout_order"
    rollout_id: JobId
    action: Literal["pause", "resume", "abort"]
    max_failures: FailureLimit | None = Field(default=None, description="the new limit of failures")
    reason: Text = Field(default="", max_length=1000)
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))


class WaveSent(Message):
    """A wave's job was published to all its targets; it need not be sent again."""

    kind: Literal["wave_sent"] = "wave_sent"
    rollout_id: JobId
    number: int = Field(ge=1, description="the wave's number; the first is 1")
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))


class WaveEnded(Message):
    """A wave has ended, or counts as ended; the pause after it begins."""

    kind: Literal["wave_ended"] = "wave_ended"
    rollout_id: JobId
    number: int = Field(ge=1, description="the wave's number; the first is 1")
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
