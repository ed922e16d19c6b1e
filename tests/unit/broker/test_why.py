"""Why a job is where it is on a workstation, in every circumstance."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.history.queries.rows import STATES, Event, JobRow, OutcomeRow
from broker.history.queries.workstations import AgentRow, WorkstationRow
from broker.results.why.circumstances import Circumstances
from broker.results.why.why import explain
from schemas import Cancellation, Command, Job, State, WallClock
from schemas.policy import AFTER_SLEEP

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SERVICE, ADA = "service", "interactive-ada"


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def seconds(at: datetime | timedelta | float | None) -> float | None:
    if isinstance(at, timedelta):
        at = NOW + at
    return at.timestamp() if isinstance(at, datetime) else at


def agent(
    name: str = SERVICE,
    status: str = "up",
    *,
    at: timedelta = -MINUTE,
    windows: str = "",
    **policy: Any,
) -> AgentRow:
    """Return an agent of a status, which it has had since a time."""
    if status == "missing" and at == -MINUTE:
        at = -HOUR
    return AgentRow(
        workstation="ws",
        agent=name,
        up=status != "stopped",
        paused=status == "paused",
        at=seconds(at) or 0,
        interval=60,
        program="1",
        windows=windows,
        waiting=3,
        running=2,
        **{"countdown": 300.0, "takeover_grace": 60.0, **policy},
    )


def station(*agents: AgentRow, groups: tuple[str, ...] = ("lab",)) -> WorkstationRow:
    first = seconds(-2 * HOUR) or 0
    return WorkstationRow("ws", first, first, "linux", "x86_64", "", "", 0, groups, agents)


def outcome(state: str, at: timedelta | None = -10 * MINUTE, **fields: Any) -> OutcomeRow:
    given: dict[str, Any] = {
        "workstation": "ws", "state": state, "at": seconds(at), "agent": SERVICE, "reason": "",
        "until": None, "exit_code": None, "signal": None, "duration": None,
        "restart_required": None, "line": "",
    }  # fmt: skip
    return OutcomeRow(**{**given, **fields})


def event(state: State, at: timedelta = -10 * MINUTE, by: str = SERVICE, reason: str = "") -> Event:
    return Event(seconds(at) or 0, str(state), by, reason, None)


def known(
    of: OutcomeRow | None,
    *agents: AgentRow,
    station_: Any = ...,
    cancelled: Any = (),
    **fields: Any,
) -> Circumstances:
    """Return circumstances: what came of it, and who is there; fields are the job's."""
    events, due_before = fields.pop("events", ()), fields.pop("due_before", {})
    row_fields = {name: fields.pop(name) for name in ("cancelled_at",) if name in fields}
    command = {name: fields.pop(name) for name in list(fields) if name in Command.model_fields}
    for name in ("offer_at", "mandatory_at", "expires_at"):
        if isinstance(fields.get(name), timedelta):
            fields[name] = NOW + fields[name]
    made = {"targets": ("workstation:ws",), "created_at": NOW - 10 * HOUR, "sender": "root@hq"}
    job = Job.model_validate(
        {**made, "command": Command(argv=("x",), **command), "id": "job-1", **fields}
    )
    row = JobRow(
        id=job.id, name=job.title, context=str(job.context), requirement=str(job.requirement),
        sender=job.sender, targets=" ".join(map(str, job.targets)), command="x",
        created_at=job.created_at.timestamp(), offer_at=_time(job.offer_at),
        mandatory_at=_time(job.mandatory_at), expires_at=_time(job.expires_at),
        cancelled_at=row_fields.get("cancelled_at"), cancel_offset=None, cancelled_by="",
        cancel_reason="", rerun_of=None, rollout=None, schedule=None, counts=Counter(),
    )  # fmt: skip
    there = station(*agents) if station_ is ... else station_
    return Circumstances(row, job, "ws", of, there, events, cancelled, NOW.timestamp(), due_before)


def _time(moment: Any) -> float | None:
    if isinstance(moment, WallClock):
        return moment.local.replace(tzinfo=UTC).timestamp() + 12 * 3600
    return None if moment is None else float(moment.timestamp())


def cancellation(*workstations: str) -> Cancellation:
    return Cancellation(
        job_id="job-1",
        workstations=workstations,
        reason="not today.",
        sender="bob@hq",
        created_at=NOW - HOUR,
    )


BACKGROUND: dict[str, Any] = {"background": True}
UP = agent()
USER = agent(ADA)

CASES: dict[str, tuple[Circumstances, str, str, timedelta | None]] = {
    # Whom it does not reach
    "in none of its groups": (
        known(None, UP, targets=("group:hr", "group:it")),
        "the job is for group:hr, group:it, and ws is in lab",
        "if it were in the group hr or it",
        None,
    ),
    "not named": (
        known(None, UP, targets=("workstation:other",)),
        "the job is for workstation:other, and ws is in lab",
        "does not reach ws",
        None,
    ),
    "left out": (
        known(None, UP, targets=("all",), excluded=("group:lab",)),
        "the job is not for ws: group:lab is excluded",
        "does not reach ws",
        None,
    ),
    "came later": (
        known(None, UP, targets=("all",)),
        "sent to all at 2026-11-23 02:00 UTC (10 h ago), before ws was known",
        "does not reach ws",
        None,
    ),
    "not known at all": (
        known(None, station_=None, targets=("group:hr",)),
        "no workstation ws has ever checked in",
        "in the group hr",
        None,
    ),
    "never checked in": (
        known(outcome("unreachable", None), station_=None, expires_at=HOUR),
        "ws has never checked in",
        "the job is queued there, and begins once the service agent runs, at the latest at 2026-11-23 13:00",
        HOUR,
    ),
    "forgotten": (
        known(
            outcome("unreachable", agent="", reason="bob had the workstation forgotten"), station_=None
        ),
        "it cannot reach ws: bob had the workstation forgotten, at 2026-11-23 11:50 UTC (10 min ago)",
        "send it again",
        None,
    ),
    "forgotten, with the job": (
        known(
            outcome("unreachable", agent="service", reason="bob had the workstation forgotten"),
            station_=None,
        ),
        "it cannot reach ws: bob had the workstation forgotten, at 2026-11-23 11:50 UTC (10 min ago)",
        "unless it comes back: its agents had received the job",
        None,
    ),
    # In the queue
    "queued, the agent up": (
        known(outcome("queued", None), UP, **BACKGROUND),
        "the service agent is up, but has not reported it as received",
        "the service agent receives it, unless the broker has dropped it",
        None,
    ),
    "queued, and its queue was made anew": (
        known(outcome("queued", None), replace(UP, queue_new_at=NOW.timestamp() - 60), **BACKGROUND),
        "the service agent's queue was made anew at 2026-11-23 11:59 UTC (1 min ago), so what was sent",
        "to send it again: pcm rerun job-1 --workstation ws",
        timedelta(days=30) - 10 * HOUR,
    ),
    "queued, in a queue that was made before": (
        known(outcome("queued", None), replace(UP, queue_new_at=0.0), **BACKGROUND),
        "the service agent is up, but has not reported it as received",
        "the service agent receives it, unless the broker has dropped it",
        None,
    ),
    "received, and expired long ago without a report": (
        known(outcome("expired", concluded=True), agent(status="missing"), expires_at=-2 * HOUR),
        "has not reported its end since it expired at 2026-11-23 10:00 UTC (2 h ago)",
        "a report that still comes counts",
        None,
    ),
    "queued, the agent missing": (
        known(outcome("queued", None), agent(status="missing"), **BACKGROUND, expires_at=2 * HOUR),
        "has been missing since 2026-11-23 11:00 UTC (1 h ago)",
        ("received when the agent is back, unless the broker drops its queue before, and starts then,"
        " unless it has expired by then, at 2026-11-23 14:00 UTC (in 2 h)"),
        2 * HOUR,
    ),
    "queued, the agent stopped": (
        known(outcome("queued", None), agent(status="stopped"), **BACKGROUND, mandatory_at=HOUR),
        "the service agent was stopped at 2026-11-23 11:59 UTC (1 min ago)",
        "starts at 2026-11-23 13:00 UTC (in 1 h)",
        None,
    ),
    "queued, a user's": (
        known(outcome("queued", None), agent(status="stopped")),
        "is queued",
        "is offered to the users who are logged on",
        None,
    ),
    "queued, no agent ever": (
        known(outcome("queued", None), **BACKGROUND),
        "the service agent has never checked in",
        "when the agent is back",
        None,
    ),
    "expired in the queue": (
        known(outcome("expired", None), agent(status="missing"), expires_at=-HOUR),
        "it expired at 2026-11-23 11:00 UTC (1 h ago), and ws has not reported it as received",
        "never starts",
        None,
    ),
    "cancelled in the queue": (
        known(outcome("cancelled", None), UP, cancelled=[cancellation()]),
        "cancelled by bob@hq at 2026-11-23 11:00 UTC (1 h ago): not today, before ws received it",
        "never starts",
        None,
    ),
    "cancelled in the queue here alone": (
        known(outcome("queued", None), UP, cancelled=[cancellation("other"), cancellation("ws")]),
        "which ws has not reported yet",
        "does not start",
        None,
    ),
    # The service's
    "its offer time is": (
        known(outcome("received"), UP, **BACKGROUND, offer_at=2 * HOUR + 5 * MINUTE),
        "its offer time is 2026-11-23 14:05 UTC (in 2 h 5 min)",
        "the service agent starts it then.",
        2 * HOUR + 5 * MINUTE,
    ),
    "waits for its mandatory time": (
        known(outcome("received"), UP, **BACKGROUND, mandatory_at=HOUR, expires_at=2 * HOUR),
        "its mandatory time is 2026-11-23 13:00 UTC (in 1 h)",
        "the service agent starts it then.",
        HOUR,
    ),
    "waits, and the agent is stopped": (
        known(outcome("received"), agent(status="stopped"), **BACKGROUND, mandatory_at=HOUR),
        "; the service agent was stopped at",
        "starts it then, or when it is back",
        HOUR,
    ),
    "waits, and the agent is paused": (
        known(outcome("received"), agent(status="paused"), **BACKGROUND, mandatory_at=HOUR),
        "; the service agent is paused",
        "or when it is resumed",
        HOUR,
    ),
    "waits for a clock on the wall": (
        known(
            outcome("received"), UP, **BACKGROUND,
            mandatory_at=WallClock(local=datetime(2026, 11, 24, 2, 0)),  # noqa: DTZ001
        ),
        "its mandatory time is 2026-11-24 02:00 on its own clock",
        "starts it then",
        timedelta(hours=26),
    ),
    "waits, and keeps to windows": (
        known(
            outcome("received"), agent(windows="Sun 02:00-06:00"), **BACKGROUND,
            mandatory_at=HOUR, respects_windows=True,
        ),
        "its mandatory time is 2026-11-23 13:00 UTC (in 1 h)",
        "starts it after that, in its next maintenance window (Sun 02:00-06:00), unless it has expired",
        None,
    ),
    "due, in turn": (
        known(outcome("received"), UP, **BACKGROUND),
        "due since 2026-11-23 11:50 UTC (10 min ago); the service agent has 2 running and 3 waiting jobs",
        "as soon as the agent has capacity",
        None,
    ),
    "due, and paused": (
        known(outcome("received"), agent(status="paused"), **BACKGROUND),
        "but the service agent is paused",
        "when the agent is resumed",
        None,
    ),
    "due, and missing": (
        known(outcome("received"), agent(status="missing"), **BACKGROUND),
        "but the service agent has been missing since",
        "when the agent is back",
        None,
    ),
    "due, and keeps to windows": (
        known(outcome("received"), agent(windows="sun 02:00-06:00"), **BACKGROUND,
              respects_windows=True),
        "needs a maintenance window (sun 02:00-06:00) for its timeout of 1 h",
        "in the next such window",
        None,
    ),
    "keeps to windows, of which there are none": (
        known(outcome("received"), UP, **BACKGROUND, respects_windows=True),
        "it has been due since",
        "as soon as the agent has capacity",
        None,
    ),
    "expired, and not told": (
        known(outcome("received"), agent(status="missing"), **BACKGROUND, expires_at=-MINUTE),
        "it expired at 2026-11-23 11:59 UTC (1 min ago), which ws has not reported yet",
        "never starts",
        None,
    ),
    "cancelled, and not told": (
        known(outcome("received"), agent(status="missing"), cancelled=[cancellation()]),
        "cancelled by bob@hq at 2026-11-23 11:00 UTC (1 h ago): not today, which ws has not reported yet",
        "it does not start",
        None,
    ),
    # Users'
    "offer time not come": (
        known(outcome("received"), UP, USER, offer_at=HOUR),
        "its offer time is",
        "offered then to the users who are logged on",
        HOUR,
    ),
    "overdue, and one that is due earlier was offered later": (
        known(
            outcome("offered", -3 * MINUTE, agent=ADA), UP, USER,
            mandatory_at=-HOUR, events=[event(State.OFFERED, -3 * MINUTE, by=ADA)],
            due_before={ADA: [(seconds(-2 * HOUR), seconds(-MINUTE))]},
        ),
        "it was offered to ada at 2026-11-23 11:57 UTC (3 min ago)",
        "at 2026-11-23 12:04 UTC (in 4 min) it runs",
        4 * MINUTE,
    ),
    "overdue, and one that is due earlier was received later": (
        known(
            outcome("received", -MINUTE), agent(takeover_grace=600.0), mandatory_at=-HOUR,
            events=[event(State.RECEIVED, -5 * MINUTE)],
            due_before={SERVICE: [(seconds(-2 * HOUR), seconds(-3 * MINUTE))]},
        ),
        "no user is known to be logged on",
        "the service agent takes over at 2026-11-23 12:07 UTC (in 7 min)",
        7 * MINUTE,
    ),
    "about to be offered": (
        known(outcome("received"), UP, USER),
        "ada's agent is up, but has not reported an offer",
        "it is offered to ada within moments",
        None,
    ),
    "a later user, to whom the service hands it over": (
        known(outcome("received"), UP, USER, events=[event(State.RECEIVED)]),
        "ada's agent is up, but has not reported an offer",
        "it is offered to ada within moments",
        None,
    ),
    "a later user, and no service": (
        known(
            outcome("received"), agent(status="stopped"), USER, events=[event(State.RECEIVED)]
        ),
        "ada's agent is up, but has not received it itself, and the service agent was stopped",
        "it is offered when the service agent, which hands over what was sent before, is running",
        None,
    ),
    "an earlier user, and no service": (
        known(
            outcome("received"), agent(status="stopped"), USER, agent("interactive-ben"),
            events=[event(State.RECEIVED), event(State.RECEIVED, by="interactive-ben")],
        ),
        "ben's agent is up, but has not reported an offer",
        "it is offered to ben within moments",
        None,
    ),
    "about to be offered, and paused": (
        known(outcome("received"), UP, agent(ADA, "paused")),
        "ada's agent is paused, but has not reported an offer",
        "it is offered to ada within moments",
        None,
    ),
    "optional, nobody logged on": (
        known(outcome("received"), UP, expires_at=HOUR),
        "no user is known to be logged on",
        "offered when a user logs on; at 2026-11-23 13:00 UTC (in 1 h) the service agent reports it",
        HOUR,
    ),
    "needs a user, nobody logged on": (
        known(outcome("received"), UP, mandatory_at=-HOUR, user_input_required=True),
        "no user is known to be logged on, and it needs a user's input",
        "offered at the next logon",
        None,
    ),
    "mandatory, nobody logged on": (
        known(outcome("received"), UP, mandatory_at=HOUR),
        "no user is known to be logged on",
        ("the service agent takes over at 2026-11-23 13:00 UTC (in 1 h), or a minute later, unless a"
        " user logs on"),
        HOUR + MINUTE,
    ),
    "take-over, and keeps to windows": (
        known(
            outcome("received"), agent(windows="Sun 02:00-06:00"), mandatory_at=HOUR,
            respects_windows=True,
        ),
        "no user is known to be logged on",
        "or a minute later, in its next maintenance window (Sun 02:00-06:00), unless a user",
        None,
    ),
    "take-over due": (
        known(outcome("received"), UP, mandatory_at=-HOUR),
        "no user is known to be logged on",
        "takes over as soon as it has capacity",
        None,
    ),
    "take-over, received late": (
        known(
            outcome("received"), UP, mandatory_at=-HOUR,
            events=[event(State.RECEIVED, -timedelta(seconds=30))],
        ),
        "no user is known to be logged on",
        "takes over at 2026-11-23 12:00 UTC (in 30 s)",
        timedelta(seconds=30),
    ),
    "take-over, the service stopped": (
        known(outcome("received"), agent(status="stopped"), mandatory_at=-HOUR),
        "and the service agent was stopped",
        "takes over after 2026-11-23 11:00 UTC (1 h ago), when it is back",
        None,
    ),
    "offered": (
        known(outcome("offered", agent=ADA), UP, USER, expires_at=HOUR),
        "it was offered to ada at 2026-11-23 11:50 UTC (10 min ago), who has not decided",
        "runs only if ada runs it, unless it has expired by then, at 2026-11-23 13:00 UTC (in 1 h)",
        HOUR,
    ),
    "offered, mandatory": (
        known(outcome("offered", agent=ADA), UP, USER, mandatory_at=HOUR),
        "who has not decided",
        "ada may run or postpone it; at 2026-11-23 13:00 UTC (in 1 h) it runs, with or without ada's consent",
        HOUR,
    ),
    "counts down": (
        known(outcome("offered", agent=ADA), UP, USER, mandatory_at=3 * MINUTE),
        "who has not decided, and its countdown runs",
        "at 2026-11-23 12:03 UTC (in 3 min) it runs",
        3 * MINUTE,
    ),
    "counts down, shown late": (
        known(
            outcome("offered", -MINUTE, agent=ADA), UP, USER, mandatory_at=-HOUR,
            events=[event(State.OFFERED, -MINUTE, ADA)],
        ),
        "and its countdown runs",
        "at 2026-11-23 12:04 UTC (in 4 min) it runs",
        4 * MINUTE,
    ),
    "offered, and keeps to windows": (
        known(
            outcome("offered", agent=ADA), UP, agent(ADA, windows="Sun 02:00-06:00"),
            mandatory_at=HOUR, respects_windows=True,
        ),
        "who has not decided",
        ("it runs after 2026-11-23 13:00 UTC (in 1 h), in its next maintenance window"
        " (Sun 02:00-06:00), with or without ada's consent"),
        None,
    ),
    "accepted, and keeps to windows": (
        known(
            outcome("accepted", agent=ADA), UP, agent(ADA, windows="Sun 02:00-06:00"),
            respects_windows=True,
        ),
        "ada accepted it",
        "as soon as it has capacity, in its next maintenance window (Sun 02:00-06:00)",
        None,
    ),
    "countdown over": (
        known(outcome("offered", agent=ADA), UP, USER, mandatory_at=-MINUTE),
        "who has not decided",
        "its countdown is over",
        None,
    ),
    "offered, and logged off": (
        known(outcome("offered", agent=ADA), UP, agent(ADA, "stopped"), mandatory_at=HOUR),
        "but ada's agent was stopped at",
        "the service agent takes over",
        HOUR + MINUTE,
    ),
    "offered, and paused": (
        known(outcome("offered", agent=ADA), UP, agent(ADA, "paused"), mandatory_at=HOUR),
        "but ada's agent is paused",
        "nothing until it is resumed",
        None,
    ),
    "postponed": (
        known(outcome("postponed", agent=ADA, until=seconds(HOUR)), UP, USER),
        "ada postponed it until 2026-11-23 13:00 UTC (in 1 h)",
        "offered again then; it runs only if ada runs it",
        HOUR,
    ),
    "postponed, mandatory": (
        known(
            outcome("postponed", agent=ADA, until=seconds(HOUR)), UP, USER, mandatory_at=2 * HOUR
        ),
        "ada postponed it until",
        "offered again then, and at 2026-11-23 14:00 UTC (in 2 h) it runs, with or without ada's consent",
        HOUR,
    ),
    "accepted": (
        known(outcome("accepted", agent=ADA), UP, USER),
        "ada accepted it at 2026-11-23 11:50",
        "ada's agent starts it as soon as it has capacity",
        None,
    ),
    "accepted, and logged off": (
        known(outcome("accepted", agent=ADA), UP, agent(ADA, "missing")),
        "but ada's agent has been missing since",
        "offered when a user logs on",
        None,
    ),
    "declined": (
        known(outcome("declined", agent=ADA, reason="later"), UP, USER, expires_at=HOUR),
        "ada declined it at 2026-11-23 11:50 UTC (10 min ago): later",
        "ada may still run it until it expires at 2026-11-23 13:00 UTC (in 1 h)",
        HOUR,
    ),
    "declined, and expired": (
        known(outcome("declined", agent=ADA), UP, USER, expires_at=-MINUTE),
        "ada declined it",
        "it never starts",
        None,
    ),
    "declined, for ever": (
        known(outcome("declined", agent=ADA), UP, USER),
        "ada declined it",
        "may still run it until it expires at",
        None,
    ),
    # By what the workstation's agents decide
    "counts down, for half an hour": (
        known(
            outcome("offered", -MINUTE, agent=ADA), UP, agent(ADA, countdown=1800.0),
            mandatory_at=-HOUR, events=[event(State.OFFERED, -MINUTE, ADA)],
        ),
        "who has not decided, and its countdown runs",
        "at 2026-11-23 12:29 UTC (in 29 min) it runs, with or without ada's consent.",
        29 * MINUTE,
    ),
    "shown again, since the clock was set back": (
        known(
            outcome("offered", -MINUTE, agent=ADA), UP, USER, mandatory_at=-HOUR,
            events=[event(State.OFFERED, 20 * HOUR, ADA), event(State.OFFERED, -MINUTE, ADA)],
        ),
        "and its countdown runs",
        "at 2026-11-23 12:04 UTC (in 4 min) it runs",
        4 * MINUTE,
    ),
    "shown by a clock that is ahead": (
        known(
            outcome("offered", 2 * MINUTE, agent=ADA), UP, USER, mandatory_at=-HOUR,
            events=[event(State.OFFERED, 2 * MINUTE, ADA)],
        ),
        "and its countdown runs",
        "at 2026-11-23 12:07 UTC (in 7 min) it runs",
        7 * MINUTE,
    ),
    "overdue, the countdown not known": (
        known(
            outcome("offered", -MINUTE, agent=ADA), UP, agent(ADA, countdown=None),
            mandatory_at=-HOUR,
        ),
        "who has not decided, and its countdown runs",
        "it runs within its countdown, with or without ada's consent, unless it has expired",
        None,
    ),
    "mandatory later, the countdown not known": (
        known(outcome("offered", agent=ADA), UP, agent(ADA, countdown=None), mandatory_at=HOUR),
        "who has not decided",
        ("it runs at 2026-11-23 13:00 UTC (in 1 h) or after its countdown, whichever is later,"
        " with or without ada's consent, unless it has expired"),
        None,
    ),
    "postponed, the countdown not known": (
        known(
            outcome("postponed", agent=ADA, until=seconds(HOUR)), UP, agent(ADA, countdown=None),
            mandatory_at=2 * HOUR,
        ),
        "ada postponed it until",
        "offered again then, and it runs at 2026-11-23 14:00 UTC (in 2 h) or after its countdown",
        HOUR,
    ),
    "postponed until now": (
        known(
            outcome("postponed", agent=ADA, until=seconds(-MINUTE)), UP, USER, mandatory_at=2 * HOUR
        ),
        "ada postponed it until",
        "ada may run or postpone it; at 2026-11-23 14:00 UTC (in 2 h) it runs",
        2 * HOUR,
    ),
    "expires before its countdown is over": (
        known(
            outcome("offered", -MINUTE, agent=ADA), UP, agent(ADA, countdown=1800.0),
            mandatory_at=-HOUR, expires_at=10 * MINUTE,
        ),
        "who has not decided",
        "it expires at 2026-11-23 12:10 UTC (in 10 min), before it may start.",
        10 * MINUTE,
    ),
    "offered, paused, and expires": (
        known(
            outcome("offered", agent=ADA), UP, agent(ADA, "paused"), mandatory_at=HOUR,
            expires_at=2 * HOUR,
        ),
        "but ada's agent is paused",
        "nothing until it is resumed, unless it has expired by then",
        2 * HOUR,
    ),
    "offered to one who accepts all": (
        known(outcome("offered", agent=ADA), UP, agent(ADA, accept_offers=True)),
        "it was offered to ada",
        "ada's agent starts it as soon as it has capacity, unless it has expired",
        None,
    ),
    "take-over after a grace period of its own": (
        known(outcome("received"), agent(takeover_grace=600.0), mandatory_at=HOUR),
        "no user is known to be logged on",
        "takes over at 2026-11-23 13:00 UTC (in 1 h), or 10 min later, unless a user logs on",
        HOUR + 10 * MINUTE,
    ),
    "take-over at once": (
        known(outcome("received"), agent(takeover_grace=0.0), mandatory_at=HOUR),
        "no user is known to be logged on",
        "takes over at 2026-11-23 13:00 UTC (in 1 h), unless a user logs on",
        HOUR,
    ),
    "take-over, the grace period not known": (
        known(outcome("received"), agent(takeover_grace=None), mandatory_at=HOUR),
        "no user is known to be logged on",
        "takes over at 2026-11-23 13:00 UTC (in 1 h), or its grace period later, unless a user",
        None,
    ),
    "take-over, and expires before": (
        known(
            outcome("received"), agent(takeover_grace=600.0), mandatory_at=HOUR,
            expires_at=HOUR + MINUTE,
        ),
        "no user is known to be logged on",
        "it expires at 2026-11-23 13:01 UTC (in 1 h 1 min), before it may start.",
        HOUR + MINUTE,
    ),
    "waits for its window, whose time is known": (
        known(
            outcome("received"), agent(windows="Sun 02:00-06:00", zone="Europe/Berlin"), **BACKGROUND,
            mandatory_at=HOUR, respects_windows=True,
        ),
        "its mandatory time is 2026-11-23 13:00 UTC (in 1 h)",
        ("starts it after that, in its next maintenance window (Sun 02:00-06:00), at"
        " 2026-11-29 01:00 UTC (in 5 days)"),
        timedelta(days=5, hours=13),
    ),
    "due, and waits for its window, whose time is known": (
        known(
            outcome("received"), agent(windows="Mon 16:00-18:00", zone="Europe/Berlin"), **BACKGROUND,
            respects_windows=True,
        ),
        "needs a maintenance window (Mon 16:00-18:00) for its timeout of 1 h",
        "starts it in the next such window, at 2026-11-23 15:00 UTC (in 3 h).",
        3 * HOUR,
    ),
    "due, and its window is open": (
        known(
            outcome("received"), agent(windows="Mon 12:00-18:00", zone="Europe/Berlin"), **BACKGROUND,
            respects_windows=True,
        ),
        "it has been due since 2026-11-23 11:50 UTC (10 min ago); the service agent has 2 running",
        "as soon as the agent has capacity",
        None,
    ),
    "expires before its window": (
        known(
            outcome("received"), agent(windows="Mon 16:00-18:00", zone="Europe/Berlin"), **BACKGROUND,
            respects_windows=True, expires_at=HOUR,
        ),
        "needs a maintenance window",
        "it expires at 2026-11-23 13:00 UTC (in 1 h), before it may start.",
        HOUR,
    ),
    "offered, and keeps to windows, whose time is known": (
        known(
            outcome("offered", agent=ADA), UP,
            agent(ADA, windows="Sun 02:00-06:00", zone="Europe/Berlin"),
            mandatory_at=HOUR, respects_windows=True,
        ),
        "who has not decided",
        ("it runs after 2026-11-23 13:00 UTC (in 1 h), in its next maintenance window"
        " (Sun 02:00-06:00), at 2026-11-29 01:00 UTC (in 5 days), with or without ada's consent"),
        timedelta(days=5, hours=13),
    ),
    "waits for its clock on the wall": (
        known(
            outcome("received"), agent(zone="Europe/Berlin"), **BACKGROUND,
            mandatory_at=WallClock(local=datetime(2026, 11, 24, 2, 0)),  # noqa: DTZ001
        ),
        "its mandatory time is 2026-11-24 02:00 on its own clock",
        "starts it then",
        timedelta(hours=13),
    ),
    "queued, and for another platform": (
        known(outcome("queued", None), agent(status="missing"), **BACKGROUND, platforms=["windows"]),
        "it cannot run on ws: runs on windows; this is linux/x86_64, which ws has not reported yet",
        "its agents report it as not applicable",
        None,
    ),
    # Runs
    "runs": (
        known(outcome("started"), UP, timeout=HOUR),
        "the service agent has been running it since 2026-11-23 11:50 UTC (10 min ago)",
        "or at its timeout at 2026-11-23 12:50 UTC (in 50 min)",
        50 * MINUTE,
    ),
    "runs again": (
        known(outcome("started", reason="again: the agent ended while it ran"), UP),
        "(10 min ago), again: the agent ended while it ran",
        "ends by itself",
        50 * MINUTE,
    ),
    "runs too long": (
        known(outcome("started"), UP, timeout=MINUTE),
        "has been running it since",
        "its timeout was at 2026-11-23 11:51 UTC (9 min ago)",
        None,
    ),
    "cancelled, and still runs": (
        known(outcome("started"), UP, cancelled=[cancellation()]),
        "it was cancelled by bob@hq at 2026-11-23 11:00 UTC (1 h ago): not today, and still runs",
        "the service agent ends it",
        None,
    ),
    "runs, and its agent is gone": (
        known(outcome("started", -2 * HOUR), agent(status="missing")),
        "whether it still runs is not known",
        "reports how it ended when it is back",
        None,
    ),
    "a user's, and logged off": (
        known(outcome("started", agent=ADA), UP, agent(ADA, "stopped")),
        "ada's agent was stopped at 2026-11-23 11:59 UTC (1 min ago): whether it still runs",
        "the service agent reports it as interrupted at 2026-11-23 12:09 UTC (in 9 min)",
        9 * MINUTE,
    ),
    "a user's, and logged off, with a setting of its service": (
        known(
            outcome("started", agent=ADA), agent(missing_after=7200.0), agent(ADA, "stopped"),
        ),
        "whether it still runs is not known",
        "the service agent reports it as interrupted at 2026-11-23 13:59 UTC (in 1 h 59 min).",
        2 * HOUR - MINUTE,
    ),
    "a user's, and missing": (
        known(
            outcome("started", -2 * HOUR, agent=ADA), agent(missing_after=7200.0),
            agent(ADA, "missing"),
        ),
        "ada's agent has been missing since 2026-11-23 11:00 UTC (1 h ago): whether it still runs",
        "reports it as interrupted at 2026-11-23 13:00 UTC (in 1 h) or later",
        HOUR,
    ),
    "a user's, which may run again until it expires": (
        known(
            outcome("started", agent=ADA), UP, agent(ADA, "stopped"), rerun_interrupted=True,
            expires_at=HOUR, events=[event(State.STARTED)] * 5,
        ),
        "whether it still runs is not known",
        "reports it as interrupted at 2026-11-23 13:10 UTC (in 1 h 10 min)",
        HOUR + 10 * MINUTE,
    ),
    "survives its agent": (
        known(outcome("started"), agent(status="stopped"), survives_agent=True),
        "whether it still runs is not known",
        "the command continues without the service agent",
        None,
    ),
    "may run again": (
        known(
            outcome("started"), agent(status="stopped"), rerun_interrupted=True,
            events=[event(State.STARTED)],
        ),
        "whether it still runs is not known",
        "starts it again when it is back, as start 2 of 5 at most",
        None,
    ),
    # Over
    "succeeded": (
        known(outcome("succeeded", exit_code=0, duration=125.0), UP),
        ("the service agent ran it: it succeeded at 2026-11-23 11:50 UTC (10 min ago) with exit code 0"
        " after 2 min 5 s"),
        "it has ended there",
        None,
    ),
    "succeeded, by a user": (
        known(
            outcome("succeeded", exit_code=0, duration=0.2, agent=ADA), UP,
            events=[event(State.STARTED, by=ADA)],
        ),
        ("ada's agent ran it: it succeeded at 2026-11-23 11:50 UTC (10 min ago) with exit code 0 in"
        " under a second"),
        "it has ended there",
        None,
    ),
    "succeeded, restart required": (
        known(outcome("succeeded", exit_code=3010, duration=1.0, restart_required=True), UP),
        "with exit code 3010",
        "ws must be restarted",
        None,
    ),
    "failed": (
        known(
            outcome("failed", exit_code=7, duration=1.0, reason="exit code 7", line="no disk"), UP,
            events=[event(State.STARTED)],
        ),
        "it failed at 2026-11-23 11:50 UTC (10 min ago) with exit code 7 after 1 s: no disk",
        "not retried",
        None,
    ),
    "failed, by a signal": (
        known(
            outcome("failed", signal=9, duration=1.0, reason="ended by SIGKILL"), UP,
            events=[event(State.STARTED)],
        ),
        "by signal 9 after 1 s, ended by SIGKILL",
        "not retried",
        None,
    ),
    "could not be started": (
        known(outcome("failed", reason="no such program: x"), UP),
        "the service agent could not start it at 2026-11-23 11:50 UTC (10 min ago): no such program: x",
        "not retried",
        None,
    ),
    "timed out": (
        known(outcome("timed_out", duration=60.0), UP, timeout=MINUTE),
        "ended it at 2026-11-23 11:50 UTC (10 min ago), at its timeout of 1 min",
        "not retried",
        None,
    ),
    "interrupted": (
        known(
            outcome("interrupted", reason="the agent ended while it ran"), UP,
            rerun_interrupted=True, events=[event(State.STARTED)] * 5,
        ),
        ("interrupted at 2026-11-23 11:50 UTC (10 min ago): the agent ended while it ran; it was"
        " started 5 times"),
        "not retried",
        None,
    ),
    "cancelled before its start": (
        known(outcome("cancelled", reason="not today."), UP, cancelled=[cancellation()]),
        "by bob@hq at 2026-11-23 11:00 UTC (1 h ago): not today; it never started there, at",
        "it has ended there",
        None,
    ),
    "cancelled while it ran": (
        known(outcome("cancelled", duration=3.0), UP, cancelled=[cancellation()]),
        "the service agent ended it, at",
        "it has ended there",
        None,
    ),
    "superseded": (
        known(outcome("cancelled", reason="superseded by job-2"), UP),
        ("it was cancelled; it never started there, at 2026-11-23 11:50 UTC (10 min ago): superseded by"
        " job-2"),
        "it has ended there",
        None,
    ),
    "expired": (
        known(outcome("expired", reason="nobody ran it in time"), UP, expires_at=-HOUR),
        "it expired at 2026-11-23 11:00 UTC (1 h ago): nobody ran it in time",
        "it has ended there",
        None,
    ),
    "not applicable": (
        known(outcome("not_applicable", reason="runs on windows; this is linux"), UP),
        "cannot run on ws: runs on windows; this is linux",
        "it has ended there",
        None,
    ),
    "refused": (
        known(outcome("refused", reason="argv: is missing"), UP),
        "the service agent refused it at 2026-11-23 11:50 UTC (10 min ago): argv: is missing",
        "it has ended there",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_circumstance_is_explained(name: str) -> None:
    circumstances, why, following, at = CASES[name]
    found = explain(circumstances)
    assert why.lower() in found.why.lower()
    assert following.lower() in found.next.lower()
    body = circumstances.body
    default_expiry = seconds(body.expiry) if body and isinstance(body.expiry, datetime) else None
    assert found.next_at in ([seconds(at)] if at is not None else [None, default_expiry])
    assert found.state == (
        circumstances.outcome.state if circumstances.outcome else "not_addressed"
    )


def test_every_state_is_among_the_circumstances() -> None:
    assert {found.outcome.state for found, *_ in CASES.values() if found.outcome} == set(STATES)


def test_there_are_two_sentences_whatever_is_known() -> None:
    """And nothing of what the programs call things, and no time to come that is over."""
    statuses = ("up", "paused", "stopped", "missing")
    stations = [
        None,
        station(),
        *(station(agent(status=one), agent(ADA, two)) for one in statuses for two in statuses),
    ]
    jobs: list[dict[str, Any]] = [
        {"background": background, **times, **more}
        for background in (True, False)
        for times in (
            {},
            {"offer_at": HOUR},
            {"mandatory_at": HOUR, "expires_at": 2 * HOUR},
            {"mandatory_at": -HOUR},
            {"mandatory_at": -2 * HOUR, "expires_at": -HOUR},
        )
        for more in ({}, {"respects_windows": True}, {"rerun_interrupted": True})
    ]
    agents = itertools.cycle((SERVICE, ADA))
    for state in (*STATES, None):
        for fields, there, asked in itertools.product(jobs, stations, ([], [cancellation()])):
            for at in (-10 * MINUTE, None) if state in {"cancelled", "expired"} else (-MINUTE,):
                by = SERVICE if fields["background"] else next(agents)
                of = outcome(state, at, agent=by) if state else None
                full = known(of, station_=there, cancelled=asked, **fields)
                for circumstances in (full, replace(full, body=None)):
                    found = explain(circumstances)
                    for sentence in (found.why, found.next):
                        assert sentence[0].isupper() or sentence.startswith(
                            ("ws", "ada", "service")
                        )
                        assert sentence.endswith(".")
                        assert not sentence.endswith("..")
                        assert "None" not in sentence
                        assert "interactive-" not in sentence
                    assert found.next_at is None or found.next_at > NOW.timestamp(), found


def test_after_sleep_the_countdown_begins_anew() -> None:
    events = [
        event(State.OFFERED, -5 * HOUR, ADA),
        event(State.OFFERED, -MINUTE, ADA, AFTER_SLEEP),
    ]
    slept = known(
        outcome("offered", -MINUTE, agent=ADA),
        agent(),
        agent(ADA),
        mandatory_at=-2 * HOUR,
        events=events,
    )
    assert explain(slept).next_at == seconds(4 * MINUTE)


def test_after_sleep_the_grace_of_the_service_begins_anew() -> None:
    """Unless it had not begun: a mandatory time that is ahead is not moved."""
    for woke_at, due_at, next_at in (
        (-MINUTE, -2 * HOUR, 4 * MINUTE),
        (-MINUTE, 2 * HOUR, 2 * HOUR + 5 * MINUTE),
        (-6 * HOUR, -2 * HOUR, None),
    ):
        told = replace(agent(), takeover_grace=300.0, woke_at=seconds(woke_at))
        events = [event(State.RECEIVED, -5 * HOUR)]
        slept = known(outcome("received", -5 * HOUR), told, mandatory_at=due_at, events=events)
        expected = None if next_at is None else seconds(next_at)
        assert explain(slept).next_at == expected
