"""How a rollout stands and what is next, told from what everyone knows of it and the time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from broker.history.projection.projection import QUEUED
from broker.history.queries import FAILURES, RUNNING, WAITING
from schemas import Rollout, RolloutOrder
from schemas.times import latest

State = Literal["due", "running", "pausing", "paused", "stopped", "expired", "aborted", "finished"]
_WHILE_SENDING = 2.0  # seconds for which a job that is to be sent must still be good


@dataclass(frozen=True)
class WaveTally:
    """What is known of a wave whose sending was begun. Times are seconds since the epoch.

    Attributes:
        begun_at: when its job was made; None if only that it was sent is known any more.
        sent: whether somebody says that all of it was sent.
        counts: its workstations, by their states.
        seen_at: when somebody who drove the rollout saw that it had ended.
        cancelled_at: when its job was cancelled, wherever it went.
        resumed: whether the rollout was resumed after that.
    """

    begun_at: float | None = None
    sent: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    seen_at: float | None = None
    cancelled_at: float | None = None
    cancelled_by: str = ""
    resumed: bool = False

    @property
    def open(self) -> int:
        """On how many workstations it has not ended."""
        return sum(self.counts[state] for state in (*WAITING, *RUNNING))

    @property
    def whole(self) -> bool:
        """Whether nobody needs to send it again."""
        return self.sent or not self.counts[QUEUED]

    def overdue(self, plan: Rollout, now: float) -> bool:
        """Whether it has not ended in the time that it was given."""
        limit = plan.wave_limit
        return bool(
            self.open
            and limit is not None
            and self.begun_at is not None
            and now >= self.begun_at + limit.total_seconds()
        )

    def ended(self, plan: Rollout, now: float) -> float | None:
        """Return when it was seen to have ended, now if by nobody yet; None if it goes on.

        The clocks of workstations do not count.
        """
        if self.open and not self.overdue(plan, now):
            return None
        return now if self.seen_at is None else min(self.seen_at, now)

    def failures(self, plan: Rollout, now: float) -> int:
        """Return on how many workstations it failed, or did not end in time."""
        failed = sum(self.counts[state] for state in FAILURES)
        return failed + (self.open if self.overdue(plan, now) else 0)


@dataclass(frozen=True)
class RolloutState:
    """How a rollout stands.

    Attributes:
        state: `due`: a wave is to be sent now, by whoever drives it.
        wave: the last wave whose sending was begun; 0 if none was.
        sent_to: how many workstations the waves up to it have.
        failures: on how many of them it failed, or did not end in time.
        limit: how many failures are borne now.
        counts: the workstations sent to, by their states.
        until: when a pause between two waves is over.
        reason: why it does not go on.
        send: the wave that is to be sent now.
        mark: the wave that has ended, as nobody has said yet.
        cancel: the waves whose jobs are to be cancelled now.
    """

    state: State
    wave: int
    sent_to: int
    failures: int
    limit: str
    counts: Counter[str]
    until: float | None = None
    reason: str = ""
    send: int | None = None
    mark: int | None = None
    cancel: tuple[int, ...] = ()

    @property
    def open(self) -> int:
        """On how many workstations it waits or runs."""
        return sum(self.counts[state] for state in (*WAITING, *RUNNING))

    @property
    def goes_on(self) -> bool:
        """Whether it goes on as long as somebody drives it."""
        return bool(self.cancel) or self.state in {"due", "running", "pausing"}

    @property
    def exceeded(self) -> bool:
        """Whether there are more failures than are borne."""
        return _exceeds(self.failures, self.limit, self.sent_to)


def standing(
    plan: Rollout, orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally], now: float
) -> RolloutState:
    """Return how a rollout stands.

    Args:
        plan: the rollout.
        orders: what was asked of it, in the order of the stream.
        tallies: its waves whose sending was begun, by their numbers.
        now: seconds since the epoch.
    """
    wave = max(tallies, default=0)
    found = RolloutState(
        state="running",
        wave=wave,
        sent_to=sum(map(len, plan.waves[:wave])),
        failures=sum(tally.failures(plan, now) for tally in tallies.values()),
        limit=_limit(plan, orders),
        counts=sum((tally.counts for tally in tallies.values()), Counter()),
    )
    return _aborted(found, orders, tallies) or _held(found, plan, orders, tallies, now)


def _aborted(
    found: RolloutState, orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally]
) -> RolloutState | None:
    abort = next((order for order in orders if order.action == "abort"), None)
    if abort is None:
        return None
    # One that was cancelled is whole only if all of it came before the cancellation; what comes
    # behind it is cancelled by the workstations, which remember the job's id.
    cancel = [number for number, wave in tallies.items() if wave.open and not wave.cancelled_at]
    return replace(found, state="aborted", reason=_by(abort), cancel=tuple(sorted(cancel)))


def _held(
    found: RolloutState,
    plan: Rollout,
    orders: Sequence[RolloutOrder],
    tallies: Mapping[int, WaveTally],
    now: float,
) -> RolloutState:
    over = [tally.ended(plan, now) for tally in tallies.values()]
    all_sent = found.wave == len(plan.waves) and all(tally.whole for tally in tallies.values())
    if all_sent and None not in over:
        return replace(found, state="finished")
    if found.exceeded:
        of = f"{found.failures} of {found.sent_to} workstations"
        return replace(found, state="stopped", reason=f"failures: {of}, more than {found.limit}")
    if reason := _pause(orders, tallies):
        return replace(found, state="paused", reason=reason)
    return _next(found, plan, tallies, now)


def _next(
    found: RolloutState, plan: Rollout, tallies: Mapping[int, WaveTally], now: float
) -> RolloutState:
    half_sent = [number for number, tally in sorted(tallies.items()) if not tally.whole]
    if half_sent:
        return _due(found, plan, half_sent[0], now)
    ends = [tally.ended(plan, now) for tally in tallies.values()]
    if None in ends or found.wave == len(plan.waves):
        return found
    until = max((end for end in ends if end is not None), default=0.0)
    until += plan.pause.total_seconds() if tallies else 0.0
    if now < until:
        mark = found.wave if tallies[found.wave].seen_at is None else None
        return replace(found, state="pausing", until=until, mark=mark)
    return _due(found, plan, found.wave + 1, now)


def _due(found: RolloutState, plan: Rollout, number: int, now: float) -> RolloutState:
    expiry = _expiry(plan)
    if expiry is not None and expiry <= now + _WHILE_SENDING:
        return replace(
            found, state="expired", reason=f"the job expired before wave {number} was sent"
        )
    return replace(found, state="due", send=number)


def _expiry(plan: Rollout) -> float | None:
    expires_at = plan.job.expires_at
    return None if expires_at is None else latest(expires_at).timestamp()


def _pause(orders: Sequence[RolloutOrder], tallies: Mapping[int, WaveTally]) -> str:
    """Return by what it is paused: an order, or that somebody cancelled a wave."""
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
