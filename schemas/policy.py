"""What an agent does next with a job: a pure function of the job, its circumstances and the time.

The table of the domain, as code. Agents decide by it, and `pcm why` says by it what they will do.
Nothing here reads a clock or a file. Times are seconds since the epoch.
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
from schemas.times import NEVER, Moment, WallClock, duration_text

AFTER_SLEEP = "the machine slept"
"""The reason of an offer that begins a whole countdown anew."""
MAX_STARTS = 5
"""Limit of restarts, for a command that ends its own agent or machine each time."""


class Step(Enum):
    """What an agent does next with a job."""

    OFFER = "offer"  # show it to the user
    ACCEPT = "accept"  # the user said once and for all that offers are welcome
    COUNT_DOWN = "count down"  # take the claim; it runs at the end, wanted or not
    RUN = "run"
    CLOSE = "close"  # it will not be started: `Next.state` says why


@dataclass(frozen=True)
class Next:
    """A step, and when to take it."""

    step: Step
    at: float
    state: State | None = None
    reason: str = ""


@dataclass(frozen=True)
class JobStatus:
    """A job, and what became of it so far at one agent.

    Attributes:
        state: the last thing that the agent reported of it.
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
        """When the job may first be seen."""
        return _seconds(self.job.offer_at, self.received_at)

    @property
    def mandatory_at(self) -> float | None:
        """When it runs, wanted or not; None for an optional job."""
        return None if self.job.mandatory_at is None else _seconds(self.job.mandatory_at, 0)

    @property
    def expires_at(self) -> float:
        """When it is too late to start it."""
        return _seconds(self.job.expires_at, NEVER)


def _seconds(moment: Moment | None, default: float) -> float:
    if moment is None:
        return default
    return (moment.instant() if isinstance(moment, WallClock) else moment).timestamp()


@dataclass(frozen=True)
class Host:
    """A workstation, as far as it decides whether and when a job starts.

    Attributes:
        platforms: what its commands can be made for.
        targets: all targets that mean it.
        windows: its maintenance windows.
        as_others: whether commands can be run as another user.
        zone: of its clock; None for that of this machine.
    """

    platforms: frozenset[str]
    targets: frozenset[Target] = frozenset()
    windows: Windows = NO_WINDOWS
    as_others: bool = True
    zone: tzinfo | None = None

    def not_applicable_reason(self, job: Job, now: float) -> str:
        """Return why a job cannot be run here, whatever the time; nothing if it can."""
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
        """Return when a job that is due at a time may start: then, or in a later window."""
        if not job.respects_windows or at == NEVER:
            return at
        due = max(at, now)
        start = self.windows.start(due, job.command.timeout.total_seconds(), self.zone)
        return at if start == due else start


_Status = TypeVar("_Status", bound=JobStatus)


@dataclass(frozen=True)
class ServiceRules:
    """What the service agent does: background jobs at their time, others where no user did."""

    host: Host
    takeover_grace: float
    waits_since: ClassVar[str] = "received_at"

    def overtaking(self, status: _Status, others: Iterable[_Status]) -> list[_Status]:
        """Return the overdue jobs whose grace would end before that of one due earlier."""
        return _overtaking(status, others, lambda one: one.received_at, 0)

    def next(self, status: JobStatus, now: float, *, claimed: bool, paused: bool = False) -> Next:  # noqa: ARG002 - as the other's
        """Return the next step of an open job, and its time; nothing is run while `paused`."""
        run_at = NEVER if paused else self._start(status, now)
        return _first(now, _ending(status, self.host, now), Next(Step.RUN, run_at))

    def start(self, status: JobStatus, now: float) -> float:
        """Return when a job starts if no other agent has it; NEVER if it ends before."""
        return _unless_ended(self._start(status, now), status, self.host, now)

    def _start(self, status: JobStatus, now: float) -> float:
        return self.host.start(status.job, self._run_at(status, now), now)

    def _run_at(self, status: JobStatus, now: float) -> float:
        if status.state is State.STARTED:
            return 0  # it was interrupted, and is to be started again
        job = status.job
        mandatory_at = status.mandatory_at
        if job.context is Context.BACKGROUND:
            return _offer_at(status, now) if mandatory_at is None else mandatory_at
        if mandatory_at is None or job.command.user_input_required:
            return NEVER
        # Counted from the receipt where that came later: a user's agent gets its chance first.
        # A receipt in the future is of a clock that was set back since: it tells nothing.
        received_at = status.received_at if status.received_at <= now else 0
        return max(mandatory_at, received_at) + self.takeover_grace

    def restarts_wait(self, status: JobStatus, now: float) -> bool:
        """Whether the grace of a user's job begins anew, since the machine has slept."""
        if status.job.context is Context.BACKGROUND or status.state is State.STARTED:
            return False
        return self._run_at(status, now) < now + self.takeover_grace and not _has_ended(
            status, self.host, now
        )


@dataclass(frozen=True)
class InteractiveRules:
    """What the interactive agent does: offers jobs, and runs what the user or the time says."""

    host: Host
    countdown: float
    accept_offers: bool = False
    waits_since: ClassVar[str] = "shown_at"

    def overtaking(self, status: _Status, others: Iterable[_Status]) -> list[_Status]:
        """Return the overdue jobs whose countdown would end before that of one due earlier."""
        return _overtaking(status, others, lambda one: one.shown_at, self.countdown)

    def next(self, status: JobStatus, now: float, *, claimed: bool, paused: bool = False) -> Next:
        """Return the next step of an open job, and its time.

        Args:
            status: of the job, as it is now.
            now: seconds since the epoch.
            claimed: whether this agent holds the job's claim.
            paused: whether nothing is run now.
        """
        ending = _ending(status, self.host, now)
        if status.state in (State.ACCEPTED, State.STARTED):  # started: to be started again
            return _first(now, ending, self._wanted(status, now, claimed=claimed, paused=paused))
        # Shown in the future: the clock was set back since, and it is shown anew.
        if status.shown_at is None or status.shown_at > now:
            return _first(now, ending, Next(Step.OFFER, _offer_at(status, now)))
        if self.accept_offers and status.state is State.OFFERED:
            return _first(now, ending, Next(Step.ACCEPT, 0))
        countdown = self._countdown(status, now, claimed=claimed, paused=paused)
        return _first(now, ending, countdown, _again(status))

    def restarts_wait(self, status: JobStatus, now: float) -> bool:
        """Whether the countdown of a job begins anew, since the machine has slept."""
        if status.mandatory_at is None or status.shown_at is None or not _is_undecided(status):
            return False
        due = max(status.mandatory_at, status.shown_at + self.countdown)
        return due < now + self.countdown and not _has_ended(status, self.host, now)

    def _wanted(self, status: JobStatus, now: float, *, claimed: bool, paused: bool) -> Next:
        """Return when a job that is to be run at once may start."""
        start = NEVER if paused else self._start(status, now)
        if start > now and status.state is State.ACCEPTED and not claimed:
            return Next(Step.COUNT_DOWN, 0)  # the service must not come first
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
        """Return when a mandatory job runs, whatever the user says; NEVER for an optional one.

        At its mandatory time; but from its first being shown, the user has a whole countdown. A
        job that respects windows runs in the first one from then on.
        """
        if status.mandatory_at is None:
            return NEVER
        shown_at = status.shown_at
        if shown_at is None or shown_at > now:  # it is shown now, or at its offer time
            shown_at = max(_offer_at(status, now), now)
        due = max(status.mandatory_at, shown_at + self.countdown)
        return self.host.start(status.job, due, now)


Rules = ServiceRules | InteractiveRules
"""What an agent goes by."""


def order(status: JobStatus) -> tuple[float, float, str]:
    """Return the sort key in which jobs that are due are run: by mandatory time."""
    at = status.offer_at if status.mandatory_at is None else status.mandatory_at
    return (at, status.received_at, status.job.id)


def _ending(status: JobStatus, host: Host, now: float) -> Next | None:
    """Return why a job is never started here, and from when on; None if nothing says so."""
    if status.cancelled is not None:
        return Next(Step.CLOSE, 0, State.CANCELLED, status.cancelled or "cancelled")
    if reason := host.not_applicable_reason(status.job, now):
        return Next(Step.CLOSE, 0, State.NOT_APPLICABLE, reason)
    if status.expires_at < NEVER:
        return Next(Step.CLOSE, status.expires_at, State.EXPIRED, "nobody ran it in time")
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
    """Return when a job may first be seen, which without a time of its own is at its receipt.

    A receipt in the future is of a clock that was set back since: it tells nothing.
    """
    return status.offer_at if status.job.offer_at is not None or status.offer_at <= now else 0


def _again(status: JobStatus) -> Next | None:
    """Return when a postponed job is offered again."""
    if status.state is State.POSTPONED and status.until is not None:
        return Next(Step.OFFER, status.until)
    return None


def _first(now: float, ending: Next | None, *steps: Next | None) -> Next:
    """Return the ending if its time has come, else what comes first."""
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
    """Return the overdue jobs that would run before another one, though they are due after it.

    Each waits from `since` on for a while. One that came later, with an earlier mandatory time,
    must not come last: overdue jobs run in the order of their mandatory times (Q173388).
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
