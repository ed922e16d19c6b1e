"""The policy of agents: the next step of a job, as a pure function of job, circumstances and time.

Agents decide by it, and `pcm why` explains by it. Nothing here reads a clock or a file. Times are
seconds since the epoch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import tzinfo
from enum import Enum
from typing import ClassVar, TypeVar

from schemas.maintenance_windows import NO_WINDOWS, Windows
from schemas.names import Target
from schemas.orders.job import Context, Job
from schemas.reports.report import State
from schemas.text import listed
from schemas.times import NEVER, Moment, WallClock, duration_text

AFTER_SLEEP = "the machine slept"
"""The reason of an offer that restarts the whole countdown."""
MAX_STARTS = 5
"""Limit of restarts, for a command that ends its own agent or machine each time."""


class Step(Enum):
    """The steps of a job at an agent."""

    OFFER = "offer"  # show it to the user
    ACCEPT = "accept"  # without asking: PCM_ACCEPT_OFFERS is set
    COUNT_DOWN = "count down"  # take the claim; the job runs at the end of the countdown
    RUN = "run"
    CLOSE = "close"  # end the job in the state `Next.state` without starting it


@dataclass(frozen=True)
class Next:
    """A step, and when to take it."""

    step: Step
    at: float
    state: State | None = None
    reason: str = ""


@dataclass(frozen=True)
class JobStatus:
    """A job and its status at one agent.

    Attributes:
        state: the last state that the agent reported.
        shown_at: when it was first offered to the user.
        until: when a postponement ends.
        cancelled: why it was cancelled or superseded; None if it was not.
    """

    job: Job
    received_at: float
    state: State = State.RECEIVED
    shown_at: float | None = None
    until: float | None = None
    cancelled: str | None = None

    @property
    def offer_at(self) -> float:
        """The time from which users may see the job."""
        return _seconds(self.job.offer_at, self.received_at)

    @property
    def mandatory_at(self) -> float | None:
        """The time at which it runs without consent; None for an optional job."""
        return None if self.job.mandatory_at is None else _seconds(self.job.mandatory_at, 0)

    @property
    def expires_at(self) -> float:
        """The time from which it is not started any more."""
        return _seconds(self.job.expiry, NEVER)


def _seconds(moment: Moment | None, default: float) -> float:
    if moment is None:
        return default
    return (moment.instant() if isinstance(moment, WallClock) else moment).timestamp()


@dataclass(frozen=True)
class Host:
    """The properties of a workstation that decide whether and when a job starts.

    Attributes:
        platforms: the platforms of its commands.
        targets: all targets that include it; none: unknown.
        windows: its maintenance windows.
        as_others: whether commands can be run as another user.
        zone: its time zone; None: that of this machine.
    """

    platforms: frozenset[str]
    targets: frozenset[Target] = frozenset()
    windows: Windows = NO_WINDOWS
    as_others: bool = True
    zone: tzinfo | None = None

    def not_applicable_reason(self, job: Job, now: float) -> str:
        """Return why a job can never run here; empty if it can."""
        if self.targets and self.targets.isdisjoint(job.targets):
            names = listed(sorted(map(str, job.targets)), _NAMED)
            return f"is for {names}, and not for this workstation"
        wanted = job.command.platforms
        if wanted and not wanted & self.platforms:
            return f"runs on {', '.join(sorted(wanted))}; this is {max(self.platforms, key=len)}"
        if job.command.run_as and not self.as_others:
            return (
                f"run_as: {job.command.run_as}: this agent does not run as root, so it cannot run"
                " a command as another user"
            )
        if left_out := self.targets.intersection(job.excluded):
            return f"left out: {', '.join(sorted(map(str, left_out)))}"
        if self.start(job, now, now) == NEVER:
            timeout = duration_text(job.command.timeout)
            return f"its timeout of {timeout} fits in no maintenance window: {self.windows}"
        return ""

    def start(self, job: Job, at: float, now: float) -> float:
        """Return when a due job may start: at its due time, or in a later window."""
        if not job.respects_windows or at == NEVER:
            return at
        due = max(at, now)
        start = self.windows.start(due, job.command.timeout.total_seconds(), self.zone)
        return at if start == due else start


_NAMED = 3
_Status = TypeVar("_Status", bound=JobStatus)


@dataclass(frozen=True)
class ServiceRules:
    """The service agent's policy: run background jobs, and mandatory jobs that no user ran."""

    host: Host
    takeover_grace: float
    waits_since: ClassVar[str] = "received_at"

    def overtaking(self, status: _Status, others: Iterable[_Status]) -> list[_Status]:
        """Return the overdue jobs whose grace would end before that of a job due earlier."""
        return _overtaking(status, others, lambda one: one.received_at, 0)

    def next(self, status: JobStatus, now: float, *, claimed: bool, paused: bool = False) -> Next:  # noqa: ARG002 - as the other's
        """Return the next step of an open job; while `paused`, nothing is run."""
        run_at = NEVER if paused else self._start(status, now)
        return _first(now, _ending(status, self.host, now), Next(Step.RUN, run_at))

    def start(self, status: JobStatus, now: float) -> float:
        """Return when a job starts if no other agent has it; NEVER if it ends before."""
        return _unless_ended(self._start(status, now), status, self.host, now)

    def _start(self, status: JobStatus, now: float) -> float:
        return self.host.start(status.job, self._run_at(status, now), now)

    def _run_at(self, status: JobStatus, now: float) -> float:
        if status.state is State.STARTED:
            return 0  # it was interrupted, and is started again
        job = status.job
        mandatory_at = status.mandatory_at
        if job.context is Context.BACKGROUND:
            return _offer_at(status, now) if mandatory_at is None else mandatory_at
        if mandatory_at is None or job.command.user_input_required:
            return NEVER
        # From the receipt if that is later, so that a user's agent can run the job first. A receipt
        # in the future is ignored: the clock was set back since.
        received_at = status.received_at if status.received_at <= now else 0
        return max(mandatory_at, received_at) + self.takeover_grace

    def restarts_wait(self, status: JobStatus, now: float) -> bool:
        """Whether the grace of a user's job restarts, since the machine has slept."""
        if status.job.context is Context.BACKGROUND or status.state is State.STARTED:
            return False
        return self._run_at(status, now) < now + self.takeover_grace and not _has_ended(
            status, self.host, now
        )


@dataclass(frozen=True)
class InteractiveRules:
    """The interactive agent's policy: offer jobs, and run accepted and due mandatory ones."""

    host: Host
    countdown: float
    accept_offers: bool = False
    waits_since: ClassVar[str] = "shown_at"

    def overtaking(self, status: _Status, others: Iterable[_Status]) -> list[_Status]:
        """Return the overdue jobs whose countdown would end before that of a job due earlier."""
        return _overtaking(status, others, lambda one: one.shown_at, self.countdown)

    def next(self, status: JobStatus, now: float, *, claimed: bool, paused: bool = False) -> Next:
        """Return the next step of an open job.

        Args:
            status: the job's current status.
            now: seconds since the epoch.
            claimed: whether this agent holds the job's claim.
            paused: whether the agent starts no jobs.
        """
        ending = _ending(status, self.host, now)
        if status.state in (State.ACCEPTED, State.STARTED):  # started: it is started again
            return _first(now, ending, self._wanted(status, now, claimed=claimed, paused=paused))
        # Shown in the future: the clock was set back since, so it is shown again.
        if status.shown_at is None or status.shown_at > now:
            return _first(now, ending, Next(Step.OFFER, _offer_at(status, now)))
        if self.accept_offers and status.state is State.OFFERED:
            return _first(now, ending, Next(Step.ACCEPT, 0))
        countdown = self._countdown(status, now, claimed=claimed, paused=paused)
        return _first(now, ending, countdown, _again(status))

    def restarts_wait(self, status: JobStatus, now: float) -> bool:
        """Whether the countdown of a job restarts, since the machine has slept."""
        if status.mandatory_at is None or status.shown_at is None or not _is_undecided(status):
            return False
        due = max(status.mandatory_at, status.shown_at + self.countdown)
        return due < now + self.countdown and not _has_ended(status, self.host, now)

    def _wanted(self, status: JobStatus, now: float, *, claimed: bool, paused: bool) -> Next:
        """Return the step of an accepted job: run it now, or in the next window."""
        start = NEVER if paused else self._start(status, now)
        if start > now and status.state is State.ACCEPTED and not claimed:
            return Next(Step.COUNT_DOWN, 0)  # otherwise the service agent could take it over
        return Next(Step.RUN, start)

    def _countdown(self, status: JobStatus, now: float, *, claimed: bool, paused: bool) -> Next:
        if claimed:
            return Next(Step.RUN, NEVER if paused else self.deadline(status, now))
        return Next(Step.COUNT_DOWN, self.countdown_at(status, now))

    def start(self, status: JobStatus, now: float) -> float:
        """Return when a job starts if its user decides nothing more; NEVER if it ends before."""
        return _unless_ended(self._start(status, now), status, self.host, now)

    def _start(self, status: JobStatus, now: float) -> float:
        if status.state in (State.ACCEPTED, State.STARTED):
            return self.host.start(status.job, 0, now)
        return self.deadline(status, now)

    def countdown_at(self, status: JobStatus, now: float) -> float:
        """Return when the countdown to the deadline begins."""
        return self.deadline(status, now) - self.countdown

    def deadline(self, status: JobStatus, now: float) -> float:
        """Return when a mandatory job runs; NEVER for an optional one.

        It runs at its mandatory time, but not before the end of a whole countdown that begins when
        it is first shown; if it respects windows, in the first window from then on.
        """
        if status.mandatory_at is None:
            return NEVER
        shown_at = status.shown_at
        if shown_at is None or shown_at > now:  # it is shown now, or at its offer time
            shown_at = max(_offer_at(status, now), now)
        due = max(status.mandatory_at, shown_at + self.countdown)
        return self.host.start(status.job, due, now)


Rules = ServiceRules | InteractiveRules
"""The policy of an agent of either kind."""


def due_order(status: JobStatus) -> tuple[float, float, str]:
    """Return the sort key of due jobs: the mandatory time first."""
    at = status.offer_at if status.mandatory_at is None else status.mandatory_at
    return (at, status.received_at, status.job.id)


def _ending(status: JobStatus, host: Host, now: float) -> Next | None:
    """Return the step that ends the job without a start; None if there is none."""
    if status.cancelled is not None:
        return Next(Step.CLOSE, 0, State.CANCELLED, status.cancelled or "cancelled")
    if reason := host.not_applicable_reason(status.job, now):
        return Next(Step.CLOSE, 0, State.NOT_APPLICABLE, reason)
    if status.expires_at < NEVER:
        return Next(Step.CLOSE, status.expires_at, State.EXPIRED, "it was not started in time")
    return None


def _unless_ended(start: float, status: JobStatus, host: Host, now: float) -> float:
    """Return when a job starts; NEVER if it is closed before, or by then."""
    ending = _ending(status, host, now)
    return NEVER if ending is not None and ending.at <= max(start, now) else start


def _has_ended(status: JobStatus, host: Host, now: float) -> bool:
    ending = _ending(status, host, now)
    return ending is not None and ending.at <= now


def _is_undecided(status: JobStatus) -> bool:
    return status.state in (State.OFFERED, State.POSTPONED)


def _offer_at(status: JobStatus, now: float) -> float:
    """Return when a job may be offered: at its offer time, or else at its receipt.

    A receipt in the future is ignored: the clock was set back since.
    """
    return status.offer_at if status.job.offer_at is not None or status.offer_at <= now else 0


def _again(status: JobStatus) -> Next | None:
    """Return the next offer of a postponed job."""
    if status.state is State.POSTPONED and status.until is not None:
        return Next(Step.OFFER, status.until)
    return None


def _first(now: float, ending: Next | None, *steps: Next | None) -> Next:
    """Return the ending if it is due, otherwise the earliest step."""
    if ending is not None and ending.at <= now:
        return ending
    return min((step for step in (ending, *steps) if step), key=lambda step: step.at)


def held_back_since(
    since: float, due: float, wait: float, earlier: Iterable[tuple[float, float]]
) -> float:
    """Return since when an overdue job waits, if jobs that are due earlier came after it.

    It is what `overtaking` leads to in the end, for programs that know only when each job came.

    Args:
        since: when the job came: was received by the service, or shown to the user.
        due: its mandatory time.
        wait: the user's countdown; 0 for the service.
        earlier: the mandatory time of each other job, and when it came.
    """
    if since + wait <= due:
        return since
    came_later = (came for its_due, came in earlier if its_due < due and came + wait > its_due)
    return max([since, *came_later])


def _overtaking(
    status: _Status,
    others: Iterable[_Status],
    since: Callable[[JobStatus], float | None],
    wait: float,
) -> list[_Status]:
    """Return the overdue jobs that would run before another one, but are due after it.

    Each waits for `wait` seconds from `since`. Overdue jobs run in the order of their mandatory
    times (Q173388), also if one with an earlier time is received later.
    """

    def is_overdue(one: JobStatus) -> bool:
        began, due = since(one), one.mandatory_at
        is_foreground = one.job.context is Context.FOREGROUND
        return is_foreground and began is not None and due is not None and began + wait > due

    if not is_overdue(status):
        return []
    return [
        other
        for other in others
        if is_overdue(other)
        and other.state not in (State.ACCEPTED, State.STARTED)
        and (other.mandatory_at or 0) > (status.mandatory_at or 0)
        and (since(other) or 0) < (since(status) or 0)
    ]
