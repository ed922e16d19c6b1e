"""The record of a stream message that the history rejected."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from schemas.message import Message
from schemas.names import Text
from schemas.orders.job import whoami
from schemas.times import Instant


class RejectedRecord(Message):
    """The record that the history rejected a message and published it as a dead letter."""

    kind: Literal["forgery"] = "forgery"
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
