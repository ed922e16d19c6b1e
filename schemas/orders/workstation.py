"""Orders about a workstation: its pause, its end, and the end of its agents' logins."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.job import whoami
from schemas.times import Instant


class Pause(Message):
    """An order to pause or resume a workstation: while paused, its agents start no jobs."""

    kind: Literal["pause"] = "pause"
    workstation: Name
    paused: bool = Field(description="no: the agents resume")
    reason: Text = Field(default="", max_length=1000)
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))


class WorkstationForgotten(Message):
    """A workstation was removed, and its queues were deleted with the jobs in them."""

    kind: Literal["departure"] = "departure"
    workstation: Name
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))


class AgentsRevoked(Message):
    """The logins of a workstation's agents were deleted, and their queues with the queued jobs."""

    kind: Literal["revocation"] = "revocation"
    workstation: Name
    agents: tuple[Text, ...] = Field(
        description="such as service or interactive-ada; a very long name is shortened"
    )
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_unreachable(self) -> bool:
        """Whether no job reaches the workstation any more."""
        return "service" in self.agents
