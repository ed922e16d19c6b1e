"""The snapshots that the agent sends; every text in them is safe to display."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.window.texts import clean

_T = TypeVar("_T")


@dataclass(frozen=True)
class Offer:
    """A job that the user can run, or that runs automatically at its deadline."""

    job: str
    name: str
    comment: str
    sender: str
    command: str
    requirement: str
    state: str
    shown_at: float | None
    mandatory_at: float | None
    deadline: float | None
    countdown: bool
    expires_at: float | None
    timeout: float
    until: float | None
    starts_at: float | None
    postponements_left: int | None
    min_interval: float | None
    may_decline: bool
    waits: str | None = None

    @property
    def mandatory(self) -> bool:
        """Whether the job runs even without the user's consent."""
        return self.requirement == "mandatory"

    @property
    def limit(self) -> float:
        """The latest time until which it can be postponed."""
        times = (self.deadline, self.expires_at)
        return min((at for at in times if at is not None), default=float("inf"))


@dataclass(frozen=True)
class RunningJob:
    """A job whose command is running."""

    job: str
    name: str
    comment: str
    sender: str
    command: str
    started_at: float
    timeout: float
    may_stop: bool


@dataclass(frozen=True)
class EndedJob:
    """A job that ended on this workstation."""

    job: str
    name: str
    comment: str
    sender: str
    command: str
    state: str
    at: float
    duration: float | None
    exit_code: int | None
    signal: int | None
    restart_required: bool
    reason: str


@dataclass(frozen=True)
class PauseView:
    """The pause of this workstation."""

    by: str
    reason: str
    since: float


@dataclass(frozen=True)
class Snapshot:
    """The contents of the window at one time."""

    workstation: str
    user: str
    now: float
    broker: str
    since: float | None
    service: str
    paused: PauseView | None
    offers: tuple[Offer, ...]
    running: tuple[RunningJob, ...]
    history: tuple[EndedJob, ...]

    def offer(self, job: str) -> Offer | None:
        """Return the offer of a job, if there is one."""
        return next((offer for offer in self.offers if offer.job == job), None)

    def runs(self, job: str) -> bool:
        """Return whether a job is running."""
        return any(running.job == job for running in self.running)

    def ended(self, job: str) -> EndedJob | None:
        """Return the row of a job that ended, if there is one."""
        return next((ended for ended in self.history if ended.job == job), None)


def parse(line: dict[str, Any]) -> Snapshot:
    """Parse a snapshot from a line of the agent."""
    line = clean_all(line)
    paused = line.get("paused")
    return Snapshot(
        workstation=line["workstation"],
        user=line["user"],
        now=line["now"],
        broker=line["broker"],
        since=line.get("since"),
        service=line["service"],
        paused=_build(PauseView, paused) if paused else None,
        offers=tuple(_build(Offer, row) for row in line["offers"]),
        running=tuple(_build(RunningJob, row) for row in line["running"]),
        history=tuple(_build(EndedJob, row) for row in line["history"]),
    )


def parse_ended(row: dict[str, Any]) -> EndedJob:
    """Parse the row of a job that ended, from the last line of its output."""
    return _build(EndedJob, clean_all(row))


def clean_all(value: Any) -> Any:
    """Return a JSON value with all its texts cleaned for display."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: clean_all(item) for key, item in value.items()}
    return [clean_all(item) for item in value] if isinstance(value, list) else value


def _build(kind: Callable[..., _T], row: dict[str, Any]) -> _T:
    # Ignore the fields of a newer agent.
    return kind(**{name: row.get(name) for name in kind.__annotations__})
