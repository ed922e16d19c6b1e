"""The snapshot that a window shows: a pure function of the agent's state and the time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agents.identity import Identity
from agents.session.broker_session import ConnectionState
from agents.store.transaction import JobRecord
from schemas import Job, Pause, Requirement, State
from schemas.policy import InteractiveRules, order
from schemas.times import NEVER

_OFFERS = frozenset({State.OFFERED, State.POSTPONED, State.DECLINED, State.ACCEPTED})
_LONGEST_COMMAND = 10_000  # characters

Row = dict[str, Any]


@dataclass(frozen=True)
class ViewInput:
    """The input of a snapshot.

    Attributes:
        identity: the agent's identity.
        now: seconds since the epoch.
        connection: the state of the connection to the broker.
        service: whether the workstation's service agent is running.
        pause: the last pause message.
        entries: the open jobs.
        started: when each running command was started, by job.
        last_shown_at: returns when an offer was shown last.
        rules: the agent's policy.
        recent: the rows of the jobs that ended, as returned by `ended`.
        waits: returns for which packages a job waits.
    """

    identity: Identity
    now: float
    connection: ConnectionState
    service: bool
    pause: Pause | None
    entries: Iterable[JobRecord]
    started: Mapping[str, float]
    last_shown_at: Callable[[JobRecord], float | None]
    rules: InteractiveRules
    recent: list[Row]
    waits: Callable[[Job], str] = lambda _: ""

    @property
    def paused(self) -> bool:
        """Whether the workstation is paused."""
        return self.pause is not None and self.pause.paused


def snapshot(view: ViewInput) -> Row:
    """Return the snapshot as the window gets it."""
    entries = sorted(view.entries, key=order)
    return {
        "workstation": view.identity.workstation,
        "user": view.identity.user,
        "now": view.now,
        "broker": view.connection.state,
        "since": view.connection.since,
        "service": "up" if view.service else "absent",
        "paused": _paused(view.pause),
        "offers": [
            _offer(entry, view)
            for entry in entries
            if entry.state in _OFFERS and entry.shown_at is not None
        ],
        "running": [
            _running(entry, view.started[entry.job.id])
            for entry in entries
            if entry.state is State.STARTED and entry.job.id in view.started
        ],
        "history": view.recent,
    }


def ended(entry: JobRecord) -> Row:
    """Return the row of a job that has ended, from its final report."""
    final = entry.final
    if final is None:
        raise ValueError(f"{entry.job.id}: has not ended here")
    result = final.result
    return {
        **_job(entry.job),
        "state": str(final.state),
        "at": final.at.timestamp(),
        "duration": result.duration.total_seconds() if result else None,
        "exit_code": result.exit_code if result else None,
        "signal": result.signal if result else None,
        "restart_required": result.restart_required if result else False,
        "reason": final.reason,
    }


def _job(job: Job) -> Row:
    command = str(job.command)
    left_out = len(command) - _LONGEST_COMMAND
    if left_out > 0:
        command = f"{command[:_LONGEST_COMMAND]}... ({left_out} characters more)"
    return {
        "job": job.id,
        "name": job.title,
        "comment": job.comment,
        "sender": job.sender,
        "command": command,
    }


def _paused(pause: Pause | None) -> Row | None:
    if pause is None or not pause.paused:
        return None
    return {"by": pause.sender, "reason": pause.reason, "since": pause.created_at.timestamp()}


def _offer(entry: JobRecord, view: ViewInput) -> Row:
    job = entry.job
    optional = job.requirement is Requirement.OPTIONAL
    return {
        **_job(job),
        "requirement": str(job.requirement),
        "state": str(entry.state),
        "shown_at": view.last_shown_at(entry),
        "mandatory_at": entry.mandatory_at,
        "deadline": _time(view.rules.deadline(entry, view.now)),
        "countdown": view.rules.countdown_at(entry, view.now) <= view.now,
        "expires_at": _time(entry.expires_at),
        "timeout": job.command.timeout.total_seconds(),
        "until": entry.until if entry.state is State.POSTPONED else None,
        "starts_at": _starts_at(entry, view),
        "postponements_left": entry.postponements_left,
        "waits": view.waits(job),
        "min_interval": job.min_interval.total_seconds(),
        "may_decline": optional and entry.state in (State.OFFERED, State.POSTPONED),
    }


def _starts_at(entry: JobRecord, view: ViewInput) -> float | None:
    """Return when an accepted job starts, if it waits for a maintenance window."""
    if entry.state is not State.ACCEPTED or view.paused:
        return None
    start = view.rules.start(entry, view.now)
    return _time(start) if start > view.now else None


def _running(entry: JobRecord, started_at: float) -> Row:
    return {
        **_job(entry.job),
        "started_at": started_at,
        "timeout": entry.job.command.timeout.total_seconds(),
        "may_stop": entry.job.command.user_may_stop,
    }


def _time(seconds: float) -> float | None:
    return None if seconds == NEVER else seconds
