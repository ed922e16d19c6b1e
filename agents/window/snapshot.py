"""What the agent tells its window; every text in it is harmless to show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.window.texts import clean

_T = TypeVar("_T")


@dataclass(frozen=True)
class Offer:
    """A job that the user may run, or that runs by itself at its deadline."""

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

    @property
    def mandatory(self) -> bool:
        """Whether it runs whatever the user does."""
        return self.requirement == "mandatory"

    @property
    def limit(self) -> float:
        """The last time to which it can be put off."""
        times = (self.deadline, self.expires_at)
        return min((at for at in times if at is not None), default=float("inf"))


@dataclass(frozen=True)
class RunningJob:
    """A job whose command runs."""

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
    """Why nothing starts on this workstation."""

    by: str
    reason: str
    since: float


@dataclass(frozen=True)
class Snapshot:
    """All that the window shows, at one instant."""

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
        """Whether a job runs."""
        return any(running.job == job for running in self.running)

    def ended(self, job: str) -> EndedJob | None:
        """Return how a job ended, if it did."""
        return next((ended for ended in self.history if ended.job == job), None)


def read(told: dict[str, Any]) -> Snapshot:
    """Return the snapshot of a line that the agent sent."""
    told = harmless(told)
    paused = told.get("paused")
    return Snapshot(
        workstation=told["workstation"],
        user=told["user"],
        now=told["now"],
        broker=told["broker"],
        since=told.get("since"),
        service=told["service"],
        paused=_made(PauseView, paused) if paused else None,
        offers=tuple(_made(Offer, row) for row in told["offers"]),
        running=tuple(_made(RunningJob, row) for row in told["running"]),
        history=tuple(_made(EndedJob, row) for row in told["history"]),
    )


def ended(told: dict[str, Any]) -> EndedJob:
    """Return how a job ended, of the last line of its output."""
    return _made(EndedJob, harmless(told))


def harmless(told: Any) -> Any:
    """Return a value of JSON whose texts can be shown."""
    if isinstance(told, str):
        return clean(told)
    if isinstance(told, dict):
        return {key: harmless(value) for key, value in told.items()}
    return [harmless(value) for value in told] if isinstance(told, list) else told


def _made(kind: Callable[..., _T], row: dict[str, Any]) -> _T:
    # What a newer agent tells besides is left out.
    return kind(**{name: row.get(name) for name in kind.__annotations__})
