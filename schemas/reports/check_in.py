"""Check-ins: the state and settings that agents publish periodically."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.signature import SealingKey
from schemas.orders.workstation import Pause
from schemas.reports.packages import (
    MAX_CONTENTS,
    MAX_PACKAGES,
    ContentProgress,
    InstalledPackage,
)
from schemas.reports.report import AgentName
from schemas.times import Duration, Instant

_AUTOMATIC = ("os-", "arch-", "release-")
_INVALID_IN_NAME = re.compile(r"[^a-z0-9_-]")
_MAX_NAME_LENGTH = 63

MISSING_AFTER = timedelta(minutes=10)
"""The default of an agent's setting; older agents do not report theirs."""


class Facts(BaseModel):
    """The facts about a workstation; all its agents report the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    os: Text = Field(default="", description="such as linux")
    arch: Text = Field(default="", description="such as x86_64")
    release: Text = Field(default="", description="such as debian-12")
    python: Text = Field(default="", description="the agent's Python, such as 3.11.7")
    memory: int = Field(default=0, ge=0, lt=2**63, description="bytes; 0: not known")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that follow from the facts, such as os-linux."""
        given = zip(_AUTOMATIC, (self.os, self.arch, self.release), strict=True)
        return tuple(
            (prefix + _INVALID_IN_NAME.sub("-", fact.lower()))[:_MAX_NAME_LENGTH]
            for prefix, fact in given
            if fact
        )


class Machine(BaseModel):
    """Which machine an agent runs on: two machines must not have the same workstation's name.

    A clone has the id of its original; the boot and the address tell them apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = Field(
        default="",
        max_length=64,
        description="a hash of the machine's id and of one in the agent's state folder",
    )
    boot: Text = Field(default="", max_length=64, description="a hash of the id of its boot")
    host: Text = Field(default="", max_length=253, description="its host name")
    address: Text = Field(default="", max_length=64, description="its address, towards the broker")


def is_automatic(group: str) -> bool:
    """Whether a group follows from facts, so that settings cannot contain it."""
    return group.startswith(_AUTOMATIC)


class CheckIn(Message):
    """The state and settings of an agent; the newest check-in of each agent counts."""

    kind: Literal["check_in"] = "check_in"
    workstation: Name
    agent: AgentName
    at: Instant = Field(default_factory=lambda: datetime.now(UTC))
    up: bool = Field(default=True, description="no: the agent has stopped")
    pause: Pause | None = Field(default=None, description="the pause in force, if there is one")
    groups: Annotated[tuple[Name, ...], FailFast()] = Field(
        default=(), description="the groups of the workstation, including those from facts"
    )
    facts: Facts = Facts()
    machine: Machine | None = Field(
        default=None, description="which machine it is; missing: an older agent"
    )
    standby: bool = Field(
        default=False,
        description="whether it receives nothing, since another machine has its queue",
    )
    program: Text = Field(default="", description="the version of the agent's program")
    windows: Text = Field(default="", description="the maintenance windows of the settings")
    zone: Text = Field(
        default="",
        description="the time zone, such as Europe/Berlin; empty: unknown",
    )
    countdown: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="the countdown before a mandatory job runs",
    )
    takeover_grace: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="the time after which the service agent takes over a mandatory job",
    )
    accept_offers: bool = Field(
        default=False, description="whether optional jobs run without asking"
    )
    missing_after: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="how long its service waits for a user's agent that ended during a command",
    )
    queue_new_at: Instant | None = Field(
        default=None,
        description="when its queue was last made anew: jobs in the former one are lost; null where"
        " that is not known",
    )
    woke_at: Instant | None = Field(
        default=None,
        description="when the machine last woke from sleep: countdown and grace began anew; null"
        " where that is not known",
    )
    waiting: int = Field(
        default=0, ge=0, lt=2**31, description="number of open jobs that have not started"
    )
    running: int = Field(default=0, ge=0, lt=2**31, description="number of running jobs")
    interval: Duration = Field(description="the longest time until the next check-in")
    signed_only: bool = Field(
        default=False, description="whether the agent requires signatures by trusted keys"
    )
    packages: tuple[InstalledPackage, ...] | None = Field(
        default=None,
        max_length=MAX_PACKAGES,
        description="the packages that the agent has run, all of them; null: as it reported last",
    )
    contents: tuple[ContentProgress, ...] | None = Field(
        default=None,
        max_length=MAX_CONTENTS,
        description="the content that its open jobs need; null: they need none",
    )
    sealing_key: SealingKey | None = Field(
        default=None, description="the public key to seal secrets for this agent"
    )

    @property
    def paused(self) -> bool:
        """Whether the agent starts no jobs."""
        return self.pause is not None
