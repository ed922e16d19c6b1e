"""The orders about a workstation itself: its pause, and its end."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.job import whoami
from schemas.times import Instant


class Pause(Message):
    """A workstation's agents start nothing more, until they are told to go on."""

    kind: Literal["pause"] = "pause"
    workstation: Name
    paused: bool = Field(description="no: they go on")
    reason: Text = Field(default="", max_length=1000)
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))


class WorkstationForgotten(Message):
    """A workstation is gone for good: its queues were deleted, and with them what waited there."""

    kind: Literal["departure"] = "departure"
    workstation: Name
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
