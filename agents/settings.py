"""An agent's settings: from `PCM_...` variables, a `.env` file, `/run/secrets`, or options."""

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
from schemas.maintenance_windows import NO_WINDOWS, WindowsSetting
from schemas.names import Name, User
from schemas.points import AddressSetting, PointsSetting
from schemas.reports.check_in import MISSING_AFTER, is_automatic
from schemas.times import Duration, duration_text

_SYSTEM_STATE = Path("/var/lib/pcm")


def _host_name() -> str:
    return socket.gethostname().partition(".")[0]


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container often has no name
        return f"uid-{os.getuid()}"


def _state_dir() -> Path:
    if os.geteuid() == 0 or _SYSTEM_STATE.is_dir():
        return _SYSTEM_STATE
    return Path.home() / ".local" / "state" / "pcm"


def _within(minimum: timedelta, maximum: timedelta) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if not minimum <= value <= maximum:
            raise ValueError(f"must be from {duration_text(minimum)} to {duration_text(maximum)}")
        return value

    return AfterValidator(check)


_LONGEST = timedelta(days=49)  # the broker counts milliseconds in 32 bits
Grace = Annotated[Duration, _within(timedelta(0), _LONGEST)]
Interval = Annotated[Duration, _within(timedelta(seconds=1), timedelta(days=3650))]


def _none_is_zero(value: object) -> object:
    return timedelta(0) if value in ("0", "none") else value


class AgentSettings(BrokerSettings):
    """The settings of both agents of a workstation."""

    workstation: Name = Field(
        default_factory=_host_name,
        validate_default=True,
        description="this workstation's name (default: the host name)",
    )
    enrolled: bool = Field(
        default=False,
        description="pcm enrol made this agent's queue; the agent declares and binds nothing",
    )
    groups: tuple[Name, ...] = Field(
        default=(), description="this workstation's groups, comma-separated"
    )
    user: Annotated[User, BeforeValidator(lambda value: value or _login_name())] = Field(
        default_factory=_login_name,
        validate_default=False,
        description="the interactive agent's user (default: the login name)",
    )
    state_dir: Path = Field(
        default_factory=_state_dir,
        description="the folder of the agents' ledgers and claims "
        "(default: /var/lib/pcm, or ~/.local/state/pcm if that does not exist)",
    )
    concurrency: int = Field(
        default=4, ge=1, le=256, description="how many commands run at the same time"
    )
    output_limit: ByteSize = Field(
        default=ByteSize(64 * 1024),
        ge=2,
        le=1024 * 1024,
        description="bytes reported of a command's stdout and of its stderr",
    )
    queue_type: QueueType = Field(
        default="quorum", description="type of the agent's queue: quorum, or classic"
    )
    queue_expires: Annotated[Duration, _within(timedelta(minutes=1), _LONGEST)] = Field(
        default=timedelta(days=30),
        description="how long the broker keeps the queue of a disconnected agent",
    )
    countdown: Grace = Field(
        default=timedelta(minutes=5),
        description="countdown that a user sees before a mandatory job runs",
    )
    takeover_grace: Grace = Field(
        default=timedelta(minutes=1),
        description="how long after its mandatory time the service takes over a user's job",
    )
    stop_grace: Grace = Field(
        default=timedelta(seconds=10),
        description="time between SIGTERM and SIGKILL when a command is stopped",
    )
    drain: Grace = Field(
        default=timedelta(seconds=20),
        description="how long running commands may continue when the service agent stops",
    )
    keep: Interval = Field(
        default=timedelta(days=90),
        description="how long ended jobs are kept; an unknown job that is older is refused",
    )
    missing_after: Grace = Field(
        default=MISSING_AFTER,
        description="how long the service waits for a user's agent that ended during a command "
        "before it reports the job interrupted",
    )
    watch_interval: Interval = Field(
        default=timedelta(minutes=1),
        description="how often an agent checks that the broker has its consumer",
    )
    login_pause: Interval = Field(
        default=timedelta(minutes=1),
        description="pause after a refused login; up to five times as long",
    )
    check_in: Interval = Field(
        default=timedelta(minutes=15),
        description="how often an agent checks in, besides at each change",
    )
    windows: WindowsSetting = Field(
        default=NO_WINDOWS,
        description="the maintenance windows, comma-separated, such as Sun 02:00-06:00",
    )
    remind: Annotated[Grace, BeforeValidator(_none_is_zero)] = Field(
        default=timedelta(hours=4),
        description="how often an optional offer is shown again; 0 or none for never",
    )
    trusted_keys: OptionalPath = Field(
        default=None,
        description="the folder of the trusted public keys; if unset, no signature is required",
    )
    approvals: int = Field(
        default=0, ge=0, le=3, description="signatures that a job needs besides its author's"
    )
    signed_within: Interval = Field(
        default=timedelta(days=90), description="how old a signed message may be when received"
    )
    accept_offers: bool = Field(default=False, description="run optional offers without asking")
    points: PointsSetting = Field(
        default=(),
        repr=False,  # it may have a password
        description="distribution points of packages, comma-separated, tried in turn:"
        " https://HOST/PATH, http://HOST/PATH, or a folder; with GROUP= before it, only for the"
        " workstations of a group, and first",
    )
    points_ca: OptionalPath = Field(
        default=None,
        description="file of the authorities that certify https points, PEM"
        " (default: the system's)",
    )
    cache_size: ByteSize = Field(
        default=ByteSize(10 * 1024**3),
        ge=1024 * 1024,
        description="greatest size of the cache of packages; the least recently used are removed",
    )
    fetch_rate: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        description="bytes a second at which packages are fetched; 0: no limit",
    )
    fetch_windows: WindowsSetting = Field(
        default=NO_WINDOWS,
        description="the windows for large downloads, comma-separated, such as 18:00-06:00",
    )
    share_cache: AddressSetting = Field(
        default=None,
        description="HOST:PORT at which the service agent serves its cache to neighbours, which"
        " name it in PCM_POINTS; empty: it does not",
    )
    large_download: ByteSize = Field(
        default=ByteSize(100 * 1024**2),
        ge=0,
        description="bytes from which a download is large: it waits for PCM_FETCH_WINDOWS",
    )

    no_window: bool = Field(default=False, description="no window; the user decides with commands")

    @model_validator(mode="after")
    def _check_approvals(self) -> Self:
        if self.approvals and self.trusted_keys is None:
            raise ValueError("approvals: need signatures: set PCM_TRUSTED_KEYS as well")
        return self

    @field_validator("groups", mode="before")
    @classmethod
    def _split_groups(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # The automatic groups of an enrolled agent are set at the enrolment.
        for name in () if info.data.get("enrolled") else filter(is_automatic, groups):
            raise ValueError(
                f"{name}: groups that begin with os-, arch- or release- are set automatically;"
                " remove it"
            )
        return tuple(dict.fromkeys(groups))
