"""The list of a channel: names of packages that point to versions."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from schemas.message import Message
from schemas.names import Name, Text
from schemas.orders.job import whoami
from schemas.orders.package import RequiredPackage
from schemas.times import Instant

CHANNEL_LIMIT = 8 * 1024 * 1024
"""The greatest size of a channel's list, in bytes."""


class ChannelList(Message):
    """The versions that a channel names.

    Each change has the next serial number. A reader remembers the greatest that it has seen, and
    refuses a list with a lower one.
    """

    kind: Literal["channel_list"] = "channel_list"
    name: Name
    serial: int = Field(ge=1, lt=2**53)
    packages: tuple[RequiredPackage, ...] = Field(default=(), max_length=10_000)
    sender: Text = Field(default_factory=whoami, max_length=200)
    created_at: Instant = Field(default_factory=lambda: datetime.now(UTC))

    def find(self, name: str) -> RequiredPackage | None:
        """Return the version of a package; None if the channel has none."""
        return next((package for package in self.packages if package.name == name), None)
