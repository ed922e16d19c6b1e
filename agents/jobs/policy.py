"""Who runs what, and when: pure decisions from an entry of the ledger and the time.

The table of the domain, as code. Nothing here reads a clock or touches a file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from agents.jobs.host import Host
from agents.store.transaction import JobRecord
from schemas import Context, State
from schemas.times import NEVER


class Step(Enum):
    """What an agent does next with an entry."""

    WAIT = "wait"
    OFFER = "offer"  # show it to the user
    ACCEPT = "accept"  # the user said once and for all that offers are welcome
    COUNT_DOWN = "count down"  # take the claim; it runs at the end, wanted or not
    RUN = "run"
    CLOSE = "close"  # it will not be started: `Next.state` says why


@dataclass(frozen=True)
class Next:
    """A step, and when to take it (seconds since the epoch)."""

    step: Step
    at: float
    state: State | None = None
    reason: str = ""


def _ending(entry: JobRecord, place: Host, now: float) -> Next | None:
    """Return why a job is never started here, and from when on; None if nothing says so."""
    if entry.cancelled is not None:
        return Next(Step.CLOSE, 0, State.CANCELLED, entry.cancelled or "cancelled")
    if reason := place.unfit(entry.job, now):
        return Next(Step.CLOSE, 0, State.NOT_APPLICABLE, reason)
    if entry.expires_at < NEVER:
        return Next(Step.CLOSE, entry.expires_at, State.EXPIRED, "nobody ran it in time")
    return None


def _offer_at(entry: JobRecord, now: float) -> float:
    """Return when a job may first be seen, which without a time of its own is at its receipt.

    A receipt in the future is of a clock that was set back since: it tells nothing.
    """
    return entry.offer_at if entry.job.offer_at is not None or entry.offer_at <= now else 0


def _first(now: float, ending: Next | None, *steps: Next | None) -> Next:
    """Return the ending if its time has come, else what comes first."""
    if ending is not None and ending.at <= now:
        return ending
    return min((step for step in (ending, *steps) if step), key=lambda step: step.at)


def _overtaking(
    entry: JobRecord,
    others: Iterable[JobRecord],
    since: Callable[[JobRecord], float | None],
    wait: float,
) -> list[JobRecord]:
    """Return the overdue jobs that would run before another one, though they are due after it.

    Each waits from `since` on for a while. One that came later, with an earlier mandatory time,
    must not come last: overdue jobs run in the order of their mandatory times (Q173388).
    """

    def is_overdue(one: JobRecord) -> bool:
        began, due = since(one), one.mandatory_at
        is_foreground = one.job.context is Context.FOREGROUND
        return is_foreground and began is not None and due is not None and began + wait > due

    if not is_overdue(entry):
        return []
    return [
        other
        for other in others
        if is_overdue(other)
        and other.state not in (State.ACCEPTED, State.STARTED)
        and (other.mandatory_at or 0) > (entry.mandatory_at or 0)
        and (since(other) or 0) < (since(entry) or 0)
    ]


@dataclass(frozen=True)
class ServiceRules:
    """What the service agent does: background jobs at their time, others where no user did."""

    place: Host
    takeover_grace: float
    waits_since: ClassVar[str] = "received_at"

    def overtaking(self, entry: JobRecord, others: Iterable[JobRecord]) -> list[JobRecord]:
        """Return the overdue jobs whose grace would end before that of one due earlier."""
        return _overtaking(entry, others, lambda one: one.received_at, 0)

    def next(self, entry: JobRecord, now: float, *, claimed: bool, paused: bool = False) -> Next:  # noqa: ARG002 - as the other's
        """Return the next step of an open entry, and its time; nothing is run while `paused`."""
        run_at = NEVER if paused else self.place.start(entry.job, self._run_at(entry, now), now)
        return _first(now, _ending(entry, self.place, now), Next(Step.RUN, run_at))

    def _run_at(self, entry: JobRecord, now: float) -> float:
        if entry.state is State.STARTED:
            return 0  # it was interrupted, and is to be started again
        job = entry.job
        mandatory_at = entry.mandatory_at
        if job.context is Context.BACKGROUND:
            return _offer_at(entry, now) if mandatory_at is None else mandatory_at
        if mandatory_at is None or job.command.user_input_required:
            return NEVER
        # Counted from the receipt where that came later: a user's agent gets its chance first.
        # A receipt in the future is of a clock that was set back since: it tells nothing.
        received_at = entry.received_at if entry.received_at <= now else 0
        return max(mandatory_at, received_at) + self.takeover_grace


@dataclass(frozen=True)
class InteractiveRules:
    """What the interactive agent does: offers jobs, and runs what the user or the time says."""

    place: Host
    countdown: float
    accept_offers: bool = False
    waits_since: ClassVar[str] = "shown_at"

    def overtaking(self, entry: JobRecord, others: Iterable[JobRecord]) -> list[JobRecord]:
        """Return the overdue jobs whose countdown would end before that of one due earlier."""
        return _overtaking(entry, others, lambda one: one.shown_at, self.countdown)

    def next(self, entry: JobRecord, now: float, *, claimed: bool, paused: bool = False) -> Next:
        """Return the next step of an open entry, and its time.

        Args:
            entry: as it is now.
            now: seconds since the epoch.
            claimed: whether this agent holds the job's claim.
            paused: whether nothing is run now.
        """
        ending = _ending(entry, self.place, now)
        if entry.state in (State.ACCEPTED, State.STARTED):  # started: to be started again
            return _first(now, ending, self._wanted(entry, now, claimed=claimed, paused=paused))
        # Shown in the future: the clock was set back since, and it is shown anew.
        if entry.shown_at is None or entry.shown_at > now:
            return _first(now, ending, Next(Step.OFFER, _offer_at(entry, now)))
        if self.accept_offers and entry.state is State.OFFERED:
            return _first(now, ending, Next(Step.ACCEPT, 0))
        countdown = self._countdown(entry, now, claimed=claimed, paused=paused)
        return _first(now, ending, countdown, _again(entry))

    def _wanted(self, entry: JobRecord, now: float, *, claimed: bool, paused: bool) -> Next:
        """Return when a job that is to be run at once may start."""
        start = NEVER if paused else self.place.start(entry.job, 0, now)
        if start > now and entry.state is State.ACCEPTED and not claimed:
            return Next(Step.COUNT_DOWN, 0)  # the service must not come first
        return Next(Step.RUN, start)

    def _countdown(self, entry: JobRecord, now: float, *, claimed: bool, paused: bool) -> Next:
        deadline = self.deadline(entry, now)
        if claimed:
            return Next(Step.RUN, NEVER if paused else deadline)
        return Next(Step.COUNT_DOWN, deadline - self.countdown)

    def deadline(self, entry: JobRecord, now: float) -> float:
        """Return when a mandatory job that was shown runs, whatever the user says.

        At its mandatory time; but from its first being shown, the user has a whole countdown. A
        job that respects windows runs in the first one from then on.
        """
        if entry.mandatory_at is None or entry.shown_at is None:
            return NEVER
        return self.place.start(
            entry.job, max(entry.mandatory_at, entry.shown_at + self.countdown), now
        )


def _again(entry: JobRecord) -> Next | None:
    """Return when a postponed job is offered again."""
    if entry.state is State.POSTPONED and entry.until is not None:
        return Next(Step.OFFER, entry.until)
    return None


def order(entry: JobRecord) -> tuple[float, float, str]:
    """Return the sort key in which jobs that are due are run: by mandatory time."""
    at = entry.offer_at if entry.mandatory_at is None else entry.mandatory_at
    return (at, entry.received_at, entry.job.id)
