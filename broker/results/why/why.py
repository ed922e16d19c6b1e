"""Why a job is where it is on a workstation, and what happens there next: a sentence each."""

import re
from dataclasses import dataclass

from broker.cli.time_formats import span
from broker.history.history import History
from broker.history.projection.projection import QUEUED, UNREACHABLE
from broker.history.queries import Pair
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Prospect,
    agent_name,
    because,
    user_name,
)
from broker.results.why.expected import by_user
from broker.results.why.prospects import wait
from broker.results.why.running import run_on
from schemas import Cancellation, State, Target

NOT_ADDRESSED = "not_addressed"
"""The state of a job on a workstation that it is not for."""

_LEFT_OUT = "left out: "
_OVER = "Nothing more happens: it is over there"


@dataclass(frozen=True)
class Why:
    """A job's state on a workstation, and the two sentences. Times are since the epoch."""

    state: str
    why: str
    next: str
    next_at: float | None


def why(history: History, job_id: str, workstation: str) -> Why:
    """Return why a job is where it is on a workstation, and what happens next.

    Times that depend on an agent's settings are given as the agents have them by default.

    Args:
        history: what is known.
        job_id: the job's id, or its beginning.
        workstation: the workstation's name.

    Raises:
        UnknownId: no job has this id, or several begin so.
    """
    accounts = history.accounts
    row = accounts.find(job_id)
    return explain(
        Circumstances(
            job=row,
            body=accounts.body(row.id),
            workstation=workstation,
            pair=accounts.pair(row.id, workstation),
            station=next(iter(history.fleet.workstations([workstation])), None),
            events=accounts.events(row.id, workstation),
            cancellations=[
                record
                for record in accounts.records("cancellation", row.id)
                if isinstance(record, Cancellation)
            ],
            now=accounts.now,
        )
    )


def explain(circumstances: Circumstances) -> Why:
    """Return why a job is where it is on a workstation, and what happens next."""
    pair = circumstances.pair
    state = NOT_ADDRESSED if pair is None else pair.state
    found = _not_addressed(circumstances) if pair is None else _of(circumstances, pair)
    names = _names(circumstances)
    return Why(state, _sentence(found.why, names), _sentence(found.next, names), found.next_at)


def _names(c: Circumstances) -> set[str]:
    """Return the names with which a sentence may begin."""
    agents = [event.agent for event in c.events] + [agent.agent for agent in c.users]
    agents += [c.pair.agent] if c.pair else []
    return {c.workstation, *map(user_name, agents)}


def _sentence(text: str, names: set[str]) -> str:
    first = re.split(r"[^\w-]", text, maxsplit=1)[0]
    return (text if first in names else text[:1].upper() + text[1:]) + "."


def _of(c: Circumstances, pair: Pair) -> Prospect:
    match pair.state:
        case State.STARTED:
            return run_on(c, pair)
        case State.DECLINED:
            return _declined(c, pair)
        case _ if pair.state == UNREACHABLE:
            return _unreachable(c, pair)
        case _ if pair.state == QUEUED or not State(pair.state).final:
            return wait(c, pair)
        case _ if pair.at is None:
            return _never_taken_in(c, pair)
    return _ended(c, pair)


# Whom it does not reach


def _not_addressed(c: Circumstances) -> Prospect:
    targets = c.body.targets if c.body else ()
    excluded = c.body.excluded if c.body else ()
    groups = c.station.groups if c.station else ()
    if found := [target for target in excluded if _covers(target, c.workstation, groups)]:
        why = f"the job is not for {c.workstation}: {found[0]} is left out of it"
    elif not targets:
        why = f"{c.workstation} has reported nothing of it, and whom it was for is not known"
    elif found := [target for target in targets if _covers(target, c.workstation, groups)]:
        since = f" at {c.at(c.station.first_seen)}" if c.station else ""
        why = (
            f"it was sent to {found[0]} at {c.at(c.job.created_at)}, when {c.workstation} was not"
            f" known there; it has checked in{since}"
            if c.station
            else f"it is for {found[0]}, but no workstation {c.workstation} is known"
        )
    else:
        why = _missed(c, [str(target) for target in targets], groups)
    wanted = [target.name for target in targets if target.scope == "group"]
    told = f"nothing: it does not reach {c.workstation}"
    if wanted and not found:
        told += f"; the next one would, if it were in the group {' or '.join(map(str, wanted))}"
    return Prospect(why, told)


def _covers(target: Target, workstation: str, groups: tuple[str, ...]) -> bool:
    if target.scope == "all":
        return True
    return target.name in (groups if target.scope == "group" else (workstation,))


def _missed(c: Circumstances, targets: list[str], groups: tuple[str, ...]) -> str:
    most = 5
    names = ", ".join(targets[:most]) + (
        f" and {len(targets) - most:,} more" * (len(targets) > most)
    )
    if c.station is None:
        return f"the job is for {names}, and no workstation {c.workstation} has ever checked in"
    inside = f"is in {', '.join(groups)}" if groups else "is in no group"
    return f"the job is for {names}, and {c.workstation} {inside}"


def _unreachable(c: Circumstances, pair: Pair) -> Prospect:
    if pair.at is not None:  # it was forgotten
        why = f"it cannot reach {c.workstation}{because(pair.reason)}, at {c.at(pair.at)}"
        told = "nothing: what waited there is gone with its queues; send it again if it comes back"
        if pair.agent:
            told = (
                "nothing, unless it comes back: its agents had taken the job in, and still do then"
                " what it says"
            )
        return Prospect(why, told)
    expiry = c.time("expires_at")
    until = f", at the latest at {c.time_text('expires_at')}" if expiry is not None else ""
    return Prospect(
        f"{c.workstation} has never checked in: nothing was ever heard of its agents",
        "if its queue was there when the job was sent, the job waits in it, and begins once the"
        f" service agent runs{until}",
        expiry,
    )


# What is over


def _never_taken_in(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of what ended while it still waited in the queue: no agent said so."""
    told = "it never starts there; the agents say so themselves once they are back"
    if pair.state == State.EXPIRED:
        return Prospect(
            f"it expired at {c.time_text('expires_at')}, before {c.workstation} took it in:"
            f" {c.standing(SERVICE)}",
            told,
        )
    return Prospect(f"it was cancelled {_withdrawn(c)}, before {c.workstation} took it in", told)


def _withdrawn(c: Circumstances) -> str:
    found = c.withdrawal
    return "" if found is None else f"by {found.by} at {c.at(found.at)}{because(found.reason)}"


def _declined(c: Circumstances, pair: Pair) -> Prospect:
    user = user_name(pair.agent)
    why = f"{user} declined it at {c.at(pair.at or c.now)}{because(pair.reason)}"
    expiry = c.time("expires_at")
    if expiry is None:
        return Prospect(why, f"nothing by itself; {user} may still run it at any time")
    if expiry <= c.now:
        return Prospect(
            why,
            f"it never starts: it expired at {c.time_text('expires_at')}, and that is not told yet",
        )
    return Prospect(
        why,
        f"nothing by itself; {user} may still run it until it expires at"
        f" {c.time_text('expires_at')}",
        by_user(c, pair.agent).next_at(c.now),
    )


def _ended(c: Circumstances, pair: Pair) -> Prospect:
    at, who = c.at(pair.at or c.now), agent_name(pair.agent)
    started = c.first(State.STARTED)
    who = agent_name(started.agent) if started else who
    error = because(pair.line)
    match State(pair.state):
        case State.SUCCEEDED:
            why = f"{who} ran it: it succeeded at {at}{_figures(pair)}"
            return Prospect(why, _after_success(c, pair))
        case State.FAILED:
            reason = because(pair.reason, ", ") if pair.exit_code is None else ""
            why = f"{who} ran it: it failed at {at}{_figures(pair)}{reason}{error}"
            if started is None:
                why = f"{who} could not start it at {at}{because(pair.reason)}"
        case State.TIMED_OUT:
            limit = f" of {span(c.body.command.timeout.total_seconds())}" if c.body else ""
            why = f"{who} ran it, and ended it at {at}: its time limit{limit} was over{error}"
        case State.INTERRUPTED:
            why = f"{who} ran it, and it was interrupted at {at}{because(pair.reason)}{_starts(c)}"
        case State.CANCELLED:
            ran = f"{who} ended it" if pair.duration is not None else "it never started there"
            asked = f"it was cancelled {_withdrawn(c)}" if c.withdrawal else "it was cancelled"
            why = f"{asked}; {ran}, at {at}{_told(c, pair)}"
        case State.EXPIRED:
            why = f"it expired at {c.time_text('expires_at')}{because(pair.reason)}"
        case State.NOT_APPLICABLE:
            why = f"it cannot run on {c.workstation}{because(pair.reason)}"
            if pair.reason.startswith(_LEFT_OUT):
                targets = pair.reason.removeprefix(_LEFT_OUT)
                why = f"the job is not for {c.workstation}: it leaves out {targets}"
        case _:
            why = f"{agent_name(pair.agent)} refused it at {at}{because(pair.reason)}"
    return Prospect(why, _after_failure(pair))


def _figures(pair: Pair) -> str:
    parts = []
    if pair.exit_code is not None:
        parts.append(f" with exit code {pair.exit_code}")
    if pair.signal is not None:
        parts.append(f" by signal {pair.signal}")
    if pair.duration is not None:
        parts.append(
            f" after {span(pair.duration)}" if pair.duration >= 1 else " in under a second"
        )
    return "".join(parts)


def _starts(c: Circumstances) -> str:
    count = sum(event.state == State.STARTED for event in c.events)
    return f"; it was started {count} times" if count > 1 else ""


def _told(c: Circumstances, pair: Pair) -> str:
    """Return the reason that an agent gave, unless it is the one of the cancellation."""
    given = c.withdrawal.reason if c.withdrawal else ""
    return "" if pair.reason in {given, "cancelled"} else because(pair.reason)


def _after_success(c: Circumstances, pair: Pair) -> str:
    if pair.restart_required:
        return f"nothing more of the job; {c.workstation} has to be restarted for it to take effect"
    return _OVER


def _after_failure(pair: Pair) -> str:
    if pair.state in {State.FAILED, State.TIMED_OUT, State.INTERRUPTED}:
        return f"{_OVER}, and it is not tried again by itself"
    return _OVER
