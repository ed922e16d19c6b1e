"""Compute the state of a rollout and its next actions, from its records and the time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from broker.history.projection.projection import QUEUED
from broker.history.queries.rows import FAILURES, RUNNING, WAITING
from schemas import Rollout, RolloutOrder
from schemas.times import latest

StateName = Literal[
    "due", "running", "pausing", "paused", "stopped", "expired", "aborted", "finished"
]
_MIN_VALIDITY = 2.0  # seconds that a job must be valid for when it is sent


@dataclass(frozen=True)
class WaveTally:
    """The state of a wave that is sent. Times are seconds since the epoch.

    Attributes:
        begun_at: when its job was created; None if the history no longer has the job.
        sent: whether it is on record that the wave was sent completely.
        counts: its workstations by state.
        end_seen_at: when a program that ran the rollout recorded the wave's end.
        cancelled_at: when its job was cancelled everywhere.
        cancelled_by: who cancelled it.
        resumed: whether the rollout was resumed after the cancellation.
    """

    begun_at: float | None = None
    sent: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    end_seen_at: float | None = None
    cancelled_at: float | None = None
    cancelled_by: str = ""
    resumed: bool = False

    @property
    def open(self) -> int:
        """The number of workstations where it has not ended."""
        return sum(self.counts[state] for state in (*WAITING, *RUNNING))

    @property
    def complete(self) -> bool:
        """Whether it was sent to all its workstations."""
        return self.sent or not self.counts[QUEUED]

    def overdue(self, plan: Rollout, now: float) -> bool:
        """Whether it has not ended within the plan's `wave_limit`."""
        limit = plan.wave_limit
        return bool(
            self.open
            and limit is not None
            and self.begun_at is not None
            and now >= self.begun_at + limit.total_seconds()
        )

    def ended(self, plan: Rollout, now: float) -> float | None:
        """Return when it ended, `now` if its end is not recorded yet; None if it has not ended.

        The clocks of workstations are not used.
        """
        if self.open and not self.overdue(plan, now):
            return None
        return now if self.end_seen_at is None else min(self.end_seen_at, now)

    def failures(self, plan: Rollout, now: float) -> int:
        """Return the number of workstations where it failed or is overdue."""
        failed = sum(self.counts[state] for state in FAILURES)
        return failed + (self.open if self.overdue(plan, now) else 0)


@dataclass(frozen=True)
class RolloutState:
    """The state of a rollout, and the actions that are due.

    Attributes:
        state: `due` if a wave is due to be sent.
        wave: the last wave that was sent; 0 if none was.
        sent_to: the number of workstations in the waves that were sent.
        failures: on how many of them it failed or is overdue.
        limit: the maximum number of failures.
        counts: the workstations that it was sent to, by state.
        until: the end of a pause between two waves.
        reason: why no further wave is sent.
        send: the wave that is due.
        record_end: the wave whose end is to be recorded.
        cancel: the waves whose jobs are to be cancelled.
    """

    state: StateName
    wave: int
    sent_to: int
    failures: int
    limit: str
    counts: Counter[str]
    until: float | None = None
    reason: str = ""
    send: int | None = None
    record_end: int | None = None
    cancel: tuple[int, ...] = ()

    @property
    def open(self) -> int:
        """The number of workstations where it has not ended."""
        return sum(self.counts[state] for state in (*WAITING, *RUNNING))

    @property
    def is_active(self) -> bool:
        """Whether a program that runs it continues."""
        return bool(self.cancel) or self.state in {"due", "running", "pausing"}

    @property
    def exceeded(self) -> bool:
        """Whether there are more failures than the limit."""
        return _exceeds(self.failures, self.limit, self.sent_to)


def rollout_state(
    plan: Rollout, orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally], now: float
) -> RolloutState:
    """Return the state of a rollout.

    Args:
        plan: the rollout.
        orders: its orders, in the order of the stream.
        tallies: the waves that were sent, by number.
        now: seconds since the epoch.
    """
    wave = max(tallies, default=0)
    state = RolloutState(
        state="running",
        wave=wave,
        sent_to=sum(map(len, plan.waves[:wave])),
        failures=sum(tally.failures(plan, now) for tally in tallies.values()),
        limit=_limit(plan, orders),
        counts=sum((tally.counts for tally in tallies.values()), Counter()),
    )
    return _aborted(state, orders, tallies) or _not_aborted(state, plan, orders, tallies, now)


def _aborted(
    state: RolloutState, orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally]
) -> RolloutState | None:
    abort = next((order for order in orders if order.action == "abort"), None)
    if abort is None:
        return None
    # A wave that is sent after its cancellation needs no second one: the workstations remember
    # the cancelled job's id.
    cancel = [number for number, wave in tallies.items() if wave.open and not wave.cancelled_at]
    return replace(state, state="aborted", reason=_by(abort), cancel=tuple(sorted(cancel)))


def _not_aborted(
    state: RolloutState,
    plan: Rollout,
    orders: Sequence[RolloutOrder],
    tallies: Mapping[int, WaveTally],
    now: float,
) -> RolloutState:
    ends = [tally.ended(plan, now) for tally in tallies.values()]
    all_sent = state.wave == len(plan.waves) and all(tally.complete for tally in tallies.values())
    if all_sent and None not in ends:
        return replace(state, state="finished")
    if state.exceeded:
        text = f"{state.failures} of {state.sent_to} workstations, more than {state.limit}"
        return replace(state, state="stopped", reason=f"failures: {text}")
    if reason := _pause_reason(orders, tallies):
        return replace(state, state="paused", reason=reason)
    return _next(state, plan, tallies, now)


def _next(
    state: RolloutState, plan: Rollout, tallies: Mapping[int, WaveTally], now: float
) -> RolloutState:
    incomplete = [number for number, tally in sorted(tallies.items()) if not tally.complete]
    if incomplete:
        return _due(state, plan, incomplete[0], now)
    ends = [tally.ended(plan, now) for tally in tallies.values()]
    if None in ends or state.wave == len(plan.waves):
        return state
    until = max((end for end in ends if end is not None), default=0.0)
    until += plan.pause.total_seconds() if tallies else 0.0
    if now < until:
        record_end = state.wave if tallies[state.wave].end_seen_at is None else None
        return replace(state, state="pausing", until=until, record_end=record_end)
    return _due(state, plan, state.wave + 1, now)


def _due(state: RolloutState, plan: Rollout, number: int, now: float) -> RolloutState:
    expiry = _expiry(plan)
    if expiry is not None and expiry <= now + _MIN_VALIDITY:
        return replace(
            state, state="expired", reason=f"the job expired before wave {number} was sent"
        )
    return replace(state, state="due", send=number)


def _expiry(plan: Rollout) -> float | None:
    expires_at = plan.job.expires_at
    return None if expires_at is None else latest(expires_at).timestamp()


def _pause_reason(orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally]) -> str:
    """Return why it is paused: by an order, or since a wave was cancelled; empty if it is not."""
    if orders and orders[-1].action == "pause":
        return _by(orders[-1])
    for number, tally in sorted(tallies.items()):
        if tally.cancelled_at is not None and not tally.resumed:
            return f"{tally.cancelled_by} cancelled wave {number}"
    return ""


def _by(order: RolloutOrder) -> str:
    return f"by {order.sender}" + (f": {order.reason}" if order.reason else "")


def _limit(plan: Rollout, orders: Iterable[RolloutOrder]) -> str:
    limit = plan.max_failures
    for order in orders:
        limit = order.max_failures or limit
    return limit


def _exceeds(failures: int, limit: str, sent_to: int) -> bool:
    if limit.endswith("%"):
        return failures * 100 > int(limit[:-1]) * sent_to
    return failures > int(limit)
