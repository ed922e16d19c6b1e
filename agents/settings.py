"""An agent's settings: `PCM_...` variables, a `.env` file, `/run/secrets`, or options."""

import getpass
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from broker.amqp.topology import QueueType
from broker.settings import BrokerSettings, OptionalPath
from schemas.check_in import is_automatic
from schemas.maintenance_windows import NO_WINDOWS, WindowsSetting
from schemas.names import Name
from schemas.times import Duration, duration_text

_SYSTEM_STATE = Path("/var/lib/pcm")


def _host_name() -> str:
    return socket.gethostname().partition(".")[0]


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid-{os.getuid()}"


def _state_dir() -> Path:
    if os.geteuid() == 0 or _SYSTEM_STATE.is_dir():
        return _SYSTEM_STATE
    return Path.home() / ".local" / "state" / "pcm"


def _within(least: timedelta, most: timedelta) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if not least <= value <= most:
            raise ValueError(f"must be from {duration_text(least)} to {duration_text(most)}")
        return value

    return AfterValidator(check)


_LONGEST = timedelta(days=49)  # what the broker, which counts milliseconds in 32 bits, can count
Grace = Annotated[Duration, _within(timedelta(0), _LONGEST)]
Interval = Annotated[Duration, _within(timedelta(seconds=1), timedelta(days=3650))]


def _none_is_zero(value: object) -> object:
    return timedelta(0) if value in ("0", "none") else value


class AgentSettings(BrokerSettings):
    """What both agents of a workstation are told."""

    workstation: Name = Field(
        default_factory=_host_name,
        validate_default=True,
        description="this workstation's name (default: the host's name)",
    )
    enrolled: bool = Field(
        default=False,
        description="whether pcm enrol made this agent's queue: it declares and binds nothing",
    )
    groups: tuple[Name, ...] = Field(
        default=(), description="the groups that it is in, parted by commas"
    )
    user: Annotated[Name, BeforeValidator(lambda given: given or _login_name())] = Field(
        default_factory=_login_name,
        validate_default=False,
        description="the user whom an interactive agent serves (default: the login name)",
    )
    state_dir: Path = Field(
        default_factory=_state_dir,
        description="where the workstation's agents keep ledgers and claims "
        "(default: /var/lib/pcm, or ~/.local/state/pcm where that is not there)",
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="commands run at once")
    output_limit: ByteSize = Field(
        default=ByteSize(64 * 1024),
        ge=2,
        le=1024 * 1024,
        description="bytes kept of each of a command's stdout and stderr",
    )
    queue_type: QueueType = Field(
        default="quorum", description="quorum, or classic for very large fleets"
    )
    queue_expires: Annotated[Duration, _within(timedelta(minutes=1), _LONGEST)] = Field(
        default=timedelta(days=30),
        description="how long the broker keeps the queue of an agent that stays away",
    )
    countdown: Grace = Field(
        default=timedelta(minutes=5), description="what a user gets before a mandatory job runs"
    )
    takeover_grace: Grace = Field(
        default=timedelta(minutes=1),
        description="how long after its mandatory time the service takes over a user's job",
    )
    stop_grace: Grace = Field(
        default=timedelta(seconds=10),
        description="what a command gets between SIGTERM and SIGKILL",
    )
    drain: Grace = Field(
        default=timedelta(seconds=20),
        description="how long a service agent that is told to stop lets commands finish",
    )
    keep: Interval = Field(
        default=timedelta(days=90),
        description="how long jobs that ended are remembered; older ones, if unknown, are refused",
    )
    missing_after: Grace = Field(
        default=timedelta(minutes=10),
        description="how long a user's agent that ended in the middle of a command may stay away "
        "before the service reports the job interrupted",
    )
    watch_interval: Interval = Field(
        default=timedelta(minutes=1),
        description="how often an agent asks the broker whether it still has its consumer",
    )
    login_pause: Interval = Field(
        default=timedelta(minutes=1),
        description="how long to wait after a refused login, up to five times as long",
    )
    check_in: Interval = Field(
        default=timedelta(minutes=15),
        description="how often an agent says that it is there, besides when something changes",
    )
    windows: WindowsSetting = Field(
        default=NO_WINDOWS,
        description="its maintenance windows, parted by commas, such as Sun 02:00-06:00",
    )
    remind: Annotated[Grace, BeforeValidator(_none_is_zero)] = Field(
        default=timedelta(hours=4),
        description="how often an optional offer is shown again; 0 or none for never",
    )
    trusted_keys: OptionalPath = Field(
        default=None,
        description="the folder of public keys whose orders count; none: orders need no signature",
    )
    approvals: int = Field(
        default=0, ge=0, le=3, description="how many have to approve a job, besides its author"
    )
    signed_within: Interval = Field(
        default=timedelta(days=90), description="how old a signed order may be when it arrives"
    )
    accept_offers: bool = Field(
        default=False, description="run optional offers at once: the user's standing yes"
    )

    no_window: bool = Field(
        default=False, description="the user decides by commands, not in a window"
    )

    @model_validator(mode="after")
    def _approved_by_somebody(self) -> Self:
        if self.approvals and self.trusted_keys is None:
            raise ValueError("approvals: are signatures: set PCM_TRUSTED_KEYS as well")
        return self

    @field_validator("groups", mode="before")
    @classmethod
    def _split_groups(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("groups")
    @classmethod
    def _given(cls, groups: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # Where others bound the queue, only they can say by which groups.
        for name in () if info.data.get("enrolled") else filter(is_automatic, groups):
            raise ValueError(
                f"{name}: groups that begin with os-, arch- or release- are given by what the"
                " machine is; leave it out"
            )
        return tuple(dict.fromkeys(groups))
