"""Who is there: what agents say of themselves, and are told apart from jobs."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.signature import PublicKey
from schemas.orders.workstation import Pause
from schemas.reports.report import AgentName
from schemas.times import Duration, Instant

_AUTOMATIC = ("os-", "arch-", "release-")
_IN_NO_NAME = re.compile(r"[^a-z0-9_-]")
_LONGEST_NAME = 63

MISSING_AFTER = timedelta(minutes=10)
"""The default of an agent's setting; older agents do not report theirs."""


class Facts(BaseModel):
    """What a workstation is; agents of one machine say the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    os: Text = Field(default="", description="such as linux")
    arch: Text = Field(default="", description="such as x86_64")
    release: Text = Field(default="", description="such as debian-12")
    python: Text = Field(default="", description="such as 3.11.7: what the agent runs on")
    memory: int = Field(default=0, ge=0, lt=2**63, description="bytes; 0: not known")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that a workstation is in by being what it is, such as os-linux."""
        given = zip(_AUTOMATIC, (self.os, self.arch, self.release), strict=True)
        return tuple(
            (prefix + _IN_NO_NAME.sub("-", fact.lower()))[:_LONGEST_NAME]
            for prefix, fact in given
            if fact
        )


def is_automatic(group: str) -> bool:
    """Whether a group is one that facts make, and nobody else may give."""
    return group.startswith(_AUTOMATIC)


class CheckIn(Message):
    """An agent says that it is there, or leaves; the newest of each agent counts."""

    kind: Literal["check_in"] = "check_in"
    workstation: Name
    agent: AgentName
    at: Instant = Field(default_factory=lambda: datetime.now(UTC))
    up: bool = Field(default=True, description="no: it was stopped, and says so at its end")
    pause: Pause | None = Field(default=None, description="why it starts nothing, if it is paused")
    groups: tuple[Name, ...] = Field(default=(), description="all that it is in, by facts as well")
    facts: Facts = Facts()
    program: Text = Field(default="", description="the version of the agent's program")
    windows: Text = Field(default="", description="its maintenance windows, as they are set")
    zone: Text = Field(
        default="",
        description="the zone of its clock, such as Europe/Berlin; empty where it is not known",
    )
    countdown: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="what a user gets there before a mandatory job runs",
    )
    takeover_grace: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="how long after its mandatory time its service takes over a user's job",
    )
    accept_offers: bool = Field(
        default=False, description="whether it runs optional offers at once"
    )
    missing_after: Duration | None = Field(
        default=None,
        ge=timedelta(0),
        description="how long its service waits for a user's agent that ended during a command",
    )
    waiting: int = Field(
        default=0, ge=0, lt=2**31, description="jobs that it has, and has not started"
    )
    running: int = Field(default=0, ge=0, lt=2**31, description="jobs whose commands run")
    interval: Duration = Field(description="after how long the next is due at the latest")
    signed_only: bool = Field(
        default=False, description="whether it takes only orders that trusted keys signed"
    )
    sealing_key: PublicKey | None = Field(
        default=None, description="for which secrets can be sealed that it alone can open"
    )

    @property
    def paused(self) -> bool:
        """Whether it starts nothing."""
        return self.pause is not None
