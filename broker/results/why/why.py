"""Explain a job's state on a workstation, and what happens there next, in a sentence each."""

import re
from dataclasses import dataclass

from broker.cli.time_formats import span
from broker.history.history import History
from broker.history.projection.projection import QUEUED, UNREACHABLE
from broker.history.queries.packages import ContentRow
from broker.history.queries.rows import WAITING, OutcomeRow
from broker.results.downloads import download_text
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Explanation,
    agent_name,
    because,
    lost_text,
    user_name,
)
from broker.results.why.next_step import user_step
from broker.results.why.not_started import explain_not_started
from broker.results.why.started import explain_started
from schemas import Cancellation, ContentState, Context, State, Target
from schemas.text import listed

NOT_ADDRESSED = "not_addressed"
"""The state of a job on a workstation that it is not for."""

NOT_SENT = "not_sent"
"""The state of a rollout on a workstation to whose wave it was not sent."""

_NO_WAVE = "{} is in a wave of the rollout that was not sent."
_WAVE_COMES = "It is sent with that wave, if the rollout goes on: pcm rollout show {}."
_LEFT_OUT = "left out: "
_MAX_TARGETS = 5
_OVER = "Nothing more happens: it has ended there"


@dataclass(frozen=True)
class Why:
    """A job's state on a workstation, explained in two sentences. Times are since the epoch."""

    state: str
    why: str
    next: str
    next_at: float | None


def why(history: History, job_id: str, workstation: str) -> Why:
    """Explain a job's state on a workstation, and what happens next.

    Times that depend on an agent's settings use the settings that it reported.

    Args:
        history: the history.
        job_id: the job's id, or its beginning.
        workstation: the workstation's name.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
    """
    queries = history.jobs
    row = queries.find(job_id)
    if row.is_rollout:
        wave = queries.wave(row.id, workstation)
        if wave is None and f"workstation:{workstation}" in row.targets.split():
            return Why(NOT_SENT, _NO_WAVE.format(workstation), _WAVE_COMES.format(row.id), None)
        row = wave or row
    return explain(
        Circumstances(
            job=row,
            body=queries.body(row.id),
            workstation=workstation,
            outcome=queries.outcome(row.id, workstation),
            station=next(iter(history.fleet.workstations([workstation])), None),
            events=queries.events(row.id, workstation),
            cancellations=[
                record
                for record in queries.records("cancellation", row.id)
                if isinstance(record, Cancellation)
            ],
            now=queries.now,
            due_before=(
                {}
                if row.mandatory_at is None or row.context == Context.BACKGROUND
                else queries.due_before(workstation, row.mandatory_at)
            ),
            downloads=_downloads(history, row.id, workstation),
        )
    )


def _downloads(history: History, job_id: str, workstation: str) -> list[ContentRow]:
    """Return the content that a job needs on a workstation, and that is not ready."""
    job = history.jobs.body(job_id)
    if job is None or job.package is None:
        return []
    rows = history.packages.contents(job.package)
    return [
        row for row in rows if row.workstation == workstation and row.state != ContentState.READY
    ]


def explain(circumstances: Circumstances) -> Why:
    """Explain a job's state on a workstation, and what happens next."""
    outcome = circumstances.outcome
    state = NOT_ADDRESSED if outcome is None else outcome.state
    found = _not_addressed(circumstances) if outcome is None else _explain(circumstances, outcome)
    names = _names(circumstances)
    return Why(state, _sentence(found.why, names), _sentence(found.next, names), found.next_at)


def _names(c: Circumstances) -> set[str]:
    """Return the names with which a sentence can begin, and which keep their case."""
    agents = [event.agent for event in c.events] + [agent.agent for agent in c.users]
    agents += [c.outcome.agent] if c.outcome else []
    return {c.workstation, *map(user_name, agents)}


def _sentence(text: str, names: set[str]) -> str:
    first = re.split(r"[^\w-]", text, maxsplit=1)[0]
    return (text if first in names else text[:1].upper() + text[1:]) + "."


def _explain(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    match outcome.state:
        case State.STARTED:
            return explain_started(c, outcome)
        case State.DECLINED:
            return _declined(c, outcome)
        case _ if outcome.state == UNREACHABLE:
            return _unreachable(c, outcome)
        case _ if outcome.state == QUEUED or not State(outcome.state).final:
            return _not_started(c, outcome)
        case _ if outcome.at is None or outcome.concluded:
            return (_ended_in_queue if outcome.at is None else _concluded)(c, outcome)
    return _ended(c, outcome)


# Workstations that it does not reach


def _not_addressed(c: Circumstances) -> Explanation:
    targets = c.body.targets if c.body else ()
    excluded = c.body.excluded if c.body else ()
    groups = c.station.groups if c.station else ()
    if found := [target for target in excluded if _covers(target, c.workstation, groups)]:
        why = f"the job is not for {c.workstation}: {found[0]} is excluded"
    elif not targets:
        why = f"{c.workstation} has not reported it, and its targets are not known"
    elif found := [target for target in targets if _covers(target, c.workstation, groups)]:
        since = f" at {c.at(c.station.first_seen)}" if c.station else ""
        why = (
            f"it was sent to {found[0]} at {c.at(c.job.created_at)}, before {c.workstation} was"
            f" known; it checked in first{since}"
            if c.station
            else f"it is for {found[0]}, but no workstation {c.workstation} is known"
        )
    else:
        why = _other_targets(c, [str(target) for target in targets], groups)
    target_groups = [str(target.name) for target in targets if target.scope == "group"]
    text = f"nothing: it does not reach {c.workstation}"
    if target_groups and not found:
        text += f"; the next one would, if it were in the group {' or '.join(target_groups)}"
    return Explanation(why, text)


def _covers(target: Target, workstation: str, groups: tuple[str, ...]) -> bool:
    if target.scope == "all":
        return True
    return target.name in (groups if target.scope == "group" else (workstation,))


def _other_targets(c: Circumstances, targets: list[str], groups: tuple[str, ...]) -> str:
    names = listed(targets, _MAX_TARGETS)
    if c.station is None:
        return f"the job is for {names}, and no workstation {c.workstation} has ever checked in"
    membership = f"is in {', '.join(groups)}" if groups else "is in no group"
    return f"the job is for {names}, and {c.workstation} {membership}"


def _unreachable(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    if outcome.at is not None:  # it was forgotten
        why = f"it cannot reach {c.workstation}{because(outcome.reason)}, at {c.at(outcome.at)}"
        text = "nothing: its queues were deleted with the job; send it again if it comes back"
        if outcome.agent:
            text = (
                "nothing, unless it comes back: its agents had received the job, and then still"
                " execute it"
            )
        return Explanation(why, text)
    expiry = c.time("expires_at")
    until = f", at the latest at {c.time_text('expires_at')}" if expiry is not None else ""
    return Explanation(
        f"{c.workstation} has never checked in",
        "if its queue existed when the job was sent, the job is queued there, and begins once the"
        f" service agent runs{until}",
        expiry,
    )


# Ended jobs


def _ended_in_queue(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job that ended while it was queued, without a report."""
    text = "it never starts there; its agents report that when they are back"
    if outcome.state == State.EXPIRED:
        return Explanation(
            f"it expired at {c.time_text('expires_at')}, and {c.workstation} has not reported it as"
            f" received: {c.status_text(SERVICE)}{lost_text(c)}",
            text,
        )
    why = f"it was cancelled {_cancellation_text(c)}, before {c.workstation} received it"
    return Explanation(why, text)


def _concluded(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job that was received, and of whose end no agent has reported."""
    return Explanation(
        f"{agent_name(outcome.agent)} received it, and has not reported its end since it expired at"
        f" {c.time_text('expires_at')}: {c.status_text(outcome.agent)}; the history concludes that"
        " it has expired",
        "nothing is expected; a report that still comes counts",
    )


def _cancellation_text(c: Circumstances) -> str:
    if (cancellation := c.cancellation) is None:
        return ""
    return f"by {cancellation.by} at {c.at(cancellation.at)}{because(cancellation.reason)}"


def _not_started(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job that has not started, and whether its content is there."""
    found = explain_not_started(c, outcome)
    if not c.downloads or outcome.state not in WAITING or c.cancellation:
        return found
    texts = "; ".join(map(download_text, c.downloads))
    next_step = f"when its content is there, {found.next}"
    return Explanation(f"{found.why}; {texts}", next_step, found.next_at)


def _declined(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    user = user_name(outcome.agent)
    why = f"{user} declined it at {c.at(outcome.at or c.now)}{because(outcome.reason)}"
    expiry = c.time("expires_at")
    if expiry is None:
        return Explanation(why, f"nothing by itself; {user} may still run it at any time")
    if expiry <= c.now:
        return Explanation(
            why,
            f"it never starts: it expired at {c.time_text('expires_at')}, which is not reported"
            " yet",
        )
    return Explanation(
        why,
        f"nothing by itself; {user} may still run it until it expires at"
        f" {c.time_text('expires_at')}",
        user_step(c, outcome.agent).next_at(c.now),
    )


def _ended(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    at = c.at(outcome.at or c.now)
    started = c.first(State.STARTED)
    agent = agent_name(started.agent if started else outcome.agent)
    error = because(outcome.line)
    match State(outcome.state):
        case State.SUCCEEDED:
            why = f"{agent} ran it: it succeeded at {at}{_result_text(outcome)}"
            return Explanation(why, _after_success(c, outcome))
        case State.FAILED:
            reason = because(outcome.reason, ", ") if outcome.exit_code is None else ""
            why = f"{agent} ran it: it failed at {at}{_result_text(outcome)}{reason}{error}"
            if started is None:
                why = f"{agent} could not start it at {at}{because(outcome.reason)}"
        case State.TIMED_OUT:
            timeout = f" of {span(c.body.command.timeout.total_seconds())}" if c.body else ""
            why = f"{agent} ran it, and ended it at {at}, at its timeout{timeout}{error}"
        case State.INTERRUPTED:
            reason = because(outcome.reason)
            why = f"{agent} ran it, and it was interrupted at {at}{reason}{_starts(c)}"
        case State.CANCELLED:
            ran = f"{agent} ended it" if outcome.duration is not None else "it never started there"
            by = f" {_cancellation_text(c)}" if c.cancellation else ""
            why = f"it was cancelled{by}; {ran}, at {at}{_agent_reason(c, outcome)}"
        case State.EXPIRED:
            why = f"it expired at {c.time_text('expires_at')}{because(outcome.reason)}"
        case State.NOT_APPLICABLE:
            why = f"it cannot run on {c.workstation}{because(outcome.reason)}"
            if outcome.reason.startswith(_LEFT_OUT):
                targets = outcome.reason.removeprefix(_LEFT_OUT)
                why = f"the job is not for {c.workstation}: it excludes {targets}"
        case _:
            why = f"{agent_name(outcome.agent)} refused it at {at}{because(outcome.reason)}"
    return Explanation(why, _after_failure(outcome))


def _result_text(outcome: OutcomeRow) -> str:
    parts = []
    if outcome.exit_code is not None:
        parts.append(f" with exit code {outcome.exit_code}")
    if outcome.signal is not None:
        parts.append(f" by signal {outcome.signal}")
    if outcome.duration is not None:
        parts.append(
            f" after {span(outcome.duration)}" if outcome.duration >= 1 else " in under a second"
        )
    return "".join(parts)


def _starts(c: Circumstances) -> str:
    count = sum(event.state == State.STARTED for event in c.events)
    return f"; it was started {count} times" if count > 1 else ""


def _agent_reason(c: Circumstances, outcome: OutcomeRow) -> str:
    """Return the reason that an agent reported, unless it is the cancellation's."""
    cancel_reason = c.cancellation.reason if c.cancellation else ""
    return "" if outcome.reason in {cancel_reason, "cancelled"} else because(outcome.reason)


def _after_success(c: Circumstances, outcome: OutcomeRow) -> str:
    if outcome.restart_required:
        return f"nothing more happens; {c.workstation} must be restarted for it to take effect"
    return _OVER


def _after_failure(outcome: OutcomeRow) -> str:
    if outcome.state in {State.FAILED, State.TIMED_OUT, State.INTERRUPTED}:
        return f"{_OVER}, and it is not retried"
    return _OVER
