"""What queries of jobs return, and the states of a job on a workstation."""

from collections import Counter
from dataclasses import dataclass

from broker.history.projection.projection import QUEUED, UNREACHABLE
from schemas import State
from schemas.errors import PcmError

RECEIVED = (State.RECEIVED, State.OFFERED, State.POSTPONED, State.ACCEPTED)
WAITING = (QUEUED, *RECEIVED)
RUNNING = (State.STARTED,)
FAILURES = (State.FAILED, State.TIMED_OUT, State.INTERRUPTED, State.REFUSED, State.EXPIRED)
STATES = (
    *WAITING,
    *RUNNING,
    State.SUCCEEDED,
    *FAILURES,
    State.CANCELLED,
    State.DECLINED,
    State.NOT_APPLICABLE,
    UNREACHABLE,
)
"""All states of a job on a workstation."""


@dataclass(frozen=True)
class JobRow:
    """A job in a list. Times are seconds since the epoch."""

    id: str
    name: str
    context: str
    requirement: str
    sender: str
    targets: str
    command: str
    created_at: float
    offer_at: float | None
    mandatory_at: float | None
    expires_at: float | None
    cancelled_at: float | None
    cancel_offset: int | None
    cancelled_by: str
    cancel_reason: str
    rerun_of: str | None
    rollout: str | None
    schedule: str | None
    counts: Counter[str]
    restart_required: int = 0

    @property
    def is_rollout(self) -> bool:
        """Whether it is a rollout, and not the job of a wave."""
        return self.id == self.rollout

    @property
    def open(self) -> int:
        """The number of workstations on which the job waits or runs."""
        return sum(self.counts[state] for state in (*WAITING, *RUNNING))

    @property
    def failures(self) -> int:
        """The number of workstations on which the job failed."""
        return sum(self.counts[state] for state in FAILURES)


@dataclass(frozen=True)
class OutcomeRow:
    """The outcome of a job on a workstation. Times are seconds since the epoch.

    Attributes:
        line: the first line of the command's output; of its errors, if it failed.
        concluded: whether the history has concluded the state, without a report of it.
        already_present: detection decided, and no command ran: true if the package was there, false
            if what is to be uninstalled was not.
    """

    workstation: str
    state: str
    at: float | None
    agent: str
    reason: str
    until: float | None
    exit_code: int | None
    signal: int | None
    duration: float | None
    restart_required: bool | None
    line: str
    concluded: bool = False
    already_present: bool | None = None


@dataclass(frozen=True)
class Event:
    """A report of a job on a workstation."""

    at: float
    state: str
    agent: str
    reason: str
    until: float | None


@dataclass(frozen=True)
class FailureGroup:
    """Workstations on which a job failed in the same way.

    Attributes:
        line: the first line of output; without output, the reason.
    """

    state: str
    exit_code: int | None
    signal: int | None
    line: str
    count: int
    example: str


class UnknownId(PcmError):
    """No job, or more than one, has an id with this beginning; the message says which."""

    def __init__(self, text: str, *, several: bool) -> None:
        super().__init__(text)
        self.several = several
