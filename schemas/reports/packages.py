"""What agents report about packages: what is installed, and what is being fetched."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from schemas.names import Name
from schemas.orders.package import RequiredPackage
from schemas.reports.report import Reason, State
from schemas.times import Instant

MAX_PACKAGES = 500
"""The greatest number of packages in a check-in; the ones that ran last are kept."""
MAX_CONTENTS = 100


class InstalledPackage(RequiredPackage):
    """A package that an agent has run, and what its detection says now."""

    command: Name = Field(description="the command that ran last")
    state: State = Field(description="how it ended")
    ran_at: Instant
    present: bool | None = Field(
        default=None,
        description="what detection says now; null: the package has none, and the last successful"
        " command decides",
    )
    checked_at: Instant | None = Field(default=None, description="when detection ran")

    @property
    def installed(self) -> bool:
        """Whether the package counts as installed."""
        if self.present is not None:
            return self.present
        return self.state is State.SUCCEEDED and self.command != "uninstall"


class ContentState(StrEnum):
    """How far the content of a job is."""

    WAITING = "waiting"  # for its moment, for a window, or to try again: see the reason
    FETCHING = "fetching"
    READY = "ready"


class ContentProgress(BaseModel):
    """The content of a package that an open job needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: RequiredPackage
    state: ContentState
    received: int = Field(default=0, ge=0, lt=2**63, description="bytes")
    size: int = Field(default=0, ge=0, lt=2**63, description="bytes; 0: not known yet")
    rate: int = Field(default=0, ge=0, lt=2**63, description="bytes a second")
    reason: Reason = Field(default="", description="why it waits")

    @property
    def percent(self) -> int:
        """The received part, from 0 to 100."""
        return min(100, self.received * 100 // self.size) if self.size else 0
