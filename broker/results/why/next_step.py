"""Compute an agent's next step with a job, by the policy that agents use."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from broker.history.projection.projection import QUEUED
from broker.history.queries.workstations import AgentRow
from broker.results.why.circumstances import SERVICE, Circumstances, Time
from schemas import Command, Job, State, everyone, group, workstation
from schemas.maintenance_windows import NO_WINDOWS, Windows, parse
from schemas.policy import (
    AFTER_SLEEP,
    Host,
    InteractiveRules,
    JobStatus,
    Next,
    Rules,
    ServiceRules,
    Step,
    held_back_since,
)
from schemas.times import NEVER, find_zone

_TIMES: tuple[Time, ...] = ("offer_at", "mandatory_at", "expires_at")
_STATES = {State.RECEIVED, State.OFFERED, State.POSTPONED, State.DECLINED, State.ACCEPTED}
_UNKNOWN = Job(command=Command(argv=("unknown",)), targets=(everyone,))


class NextStep(NamedTuple):
    """An agent's next step with a job.

    Attributes:
        next: the step.
        due_at: when the job is due; it runs in the first maintenance window from then on.
        is_exact: whether the agent reported all settings on which the step's time depends. If
            not, the step is taken at that time or later.
        counts_down: whether the countdown to its run has begun.
    """

    next: Next
    due_at: float
    is_exact: bool
    counts_down: bool = False

    def is_now(self, now: float) -> bool:
        """Whether the step is taken immediately."""
        return self.is_exact and self.next.at <= now

    def next_at(self, now: float) -> float | None:
        """Return when the step is taken; None if it is now, never or not known."""
        return self.next.at if self.is_exact and now < self.next.at < NEVER else None


def service_step(c: Circumstances, *, paused: bool = False) -> NextStep:
    """Return the service agent's next step with a job that has not started."""
    row = c.service
    grace = row.takeover_grace if row else None
    rules = ServiceRules(_host(c, row), grace or 0.0)
    status, now = _status(c, SERVICE), _clock(c, SERVICE)
    if not c.background:
        status = _since_sleep(rules, status, row)
        since = _held_back_since(c, SERVICE, status.received_at, 0)
        status = replace(status, received_at=since)
    step = rules.next(status, now, claimed=False, paused=paused)
    due = replace(rules, host=_always_open(rules)).next(status, now, claimed=False)
    delay_known = c.background or grace is not None
    return NextStep(
        step,
        max(due.at, min(status.received_at, now)),
        _is_exact(c, row, step, delay_known=delay_known),
    )


def user_step(c: Circumstances, agent: str, *, paused: bool = False) -> NextStep:
    """Return an interactive agent's next step, if no other agent runs the job first."""
    row = c.agent(agent)
    countdown = row.countdown if row else None
    rules = InteractiveRules(
        _host(c, row), countdown or 0.0, accept_offers=row is not None and row.accept_offers
    )
    status, now = _status(c, agent), _clock(c, agent)
    if status.shown_at is not None:
        since = _held_back_since(c, agent, status.shown_at, rules.countdown)
        status = replace(status, shown_at=since)
    step = rules.next(status, now, claimed=True, paused=paused)
    unclaimed = rules.next(status, now, claimed=False)
    return NextStep(
        step,
        replace(rules, host=_always_open(rules)).deadline(status, now),
        _is_exact(c, row, step, delay_known=countdown is not None),
        counts_down=unclaimed.step is Step.COUNT_DOWN
        and unclaimed.at <= now
        and _windows_known(c, row),
    )


def _since_sleep(rules: ServiceRules, status: JobStatus, row: AgentRow | None) -> JobStatus:
    """Return the status at a service agent whose machine has slept: its grace began anew."""
    woke_at = row.woke_at if row else None
    if woke_at is None or woke_at <= status.received_at or not rules.restarts_wait(status, woke_at):
        return status
    return replace(status, received_at=woke_at)


def _held_back_since(c: Circumstances, agent: str, since: float, wait: float) -> float:
    """Return since when an agent has the job wait, also for jobs that are due earlier."""
    due = c.time("mandatory_at")
    return since if due is None else held_back_since(since, due, wait, c.due_before.get(agent, ()))


def _is_exact(c: Circumstances, row: AgentRow | None, step: Next, *, delay_known: bool) -> bool:
    if step.step is not Step.RUN:
        return True  # the step precedes any time at which the job can run
    return delay_known and _windows_known(c, row)


def _windows_known(c: Circumstances, row: AgentRow | None) -> bool:
    """Whether it is known when the job's maintenance windows open, if it respects them."""
    respects = c.body is not None and c.body.respects_windows
    return not respects or _windows(row) is not None


def _always_open(rules: Rules) -> Host:
    return replace(rules.host, windows=NO_WINDOWS)


def _host(c: Circumstances, row: AgentRow | None) -> Host:
    """Return the workstation's host; facts that are not known must not exclude the job."""
    station = c.station
    platforms = station.platforms if station else frozenset()
    if not platforms and c.body is not None:
        platforms = c.body.command.platforms
    groups = map(group, station.groups if station else ())
    targets = frozenset({everyone, workstation(c.workstation), *groups})
    zone = find_zone(row.zone) if row else None
    return Host(platforms, targets, _windows(row) or NO_WINDOWS, zone=zone)


def _windows(row: AgentRow | None) -> Windows | None:
    """Return an agent's windows; None if it is not known when they open."""
    if row is None or not row.windows:
        return NO_WINDOWS
    with suppress(ValueError):  # from another version, or damaged
        return parse(row.windows) if find_zone(row.zone) else None
    return None


def _status(c: Circumstances, agent: str) -> JobStatus:
    """Return the job's status at an agent that has not started it."""
    outcome = c.outcome if c.outcome is not None and c.outcome.agent == agent else None
    state = (
        State(outcome.state) if outcome is not None and outcome.state in _STATES else State.RECEIVED
    )
    until = outcome.until if outcome is not None else None
    if state is State.POSTPONED and until is not None and until <= _clock(c, agent):
        state = State.OFFERED  # the agent shows it again by now
    return JobStatus(
        _job(c),
        _received_at(c, agent),
        state,
        _shown_at(c, agent, state),
        until,
        c.cancellation.reason if c.cancellation is not None else None,
    )


def _received_at(c: Circumstances, agent: str) -> float:
    if c.outcome is None or c.outcome.state == QUEUED:
        return c.now  # at the earliest
    if received := c.first(State.RECEIVED, agent):
        return received.at
    if c.outcome.at is not None and (c.outcome.state, c.outcome.agent) == (State.RECEIVED, agent):
        return c.outcome.at
    return c.job.created_at


def _shown_at(c: Circumstances, agent: str, state: State) -> float | None:
    """Return when a user was first shown the job, by the last clock and since the last sleep."""
    offered = [e for e in c.events if (e.state, e.agent) == (State.OFFERED, agent)]
    if anew := [event.at for event in offered if event.reason == AFTER_SLEEP]:
        return max(anew)
    shown = [event.at for event in offered]
    if not shown and state is not State.RECEIVED and c.outcome is not None:
        return c.outcome.at or c.now
    return min(shown, default=None)


def _job(c: Circumstances) -> Job:
    """Return the job with its times as the workstation computes them."""
    created_at = datetime.fromtimestamp(c.job.created_at, UTC)
    job = c.body or _UNKNOWN.model_copy(update={"created_at": created_at})
    times: dict[str, Any] = {name: c.time(name) for name in _TIMES}
    for name, time in times.items():
        times[name] = None if time is None else datetime.fromtimestamp(time, UTC)
    command = job.command.model_copy(update={"background": c.background})
    return job.model_copy(update={**times, "command": command})


def _clock(c: Circumstances, agent: str) -> float:
    """Return the time on an agent's clock, which can be ahead of this machine's."""
    times = [event.at for event in c.events if event.agent == agent]
    return max(c.now, times[-1]) if times else c.now
