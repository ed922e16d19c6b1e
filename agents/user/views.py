"""What a window is shown: a picture of an agent's work, made of that and the time alone."""

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
    """What a picture is made of.

    Attributes:
        identity: whose work it is.
        now: seconds since the epoch.
        link: how it stands with the broker.
        service: whether the workstation's service agent is there.
        pause: what was said last of pausing.
        entries: the open entries.
        started: when each running command was started, by job.
        shown: tells when an offer was shown last.
        rules: what the agent goes by.
        past: what has ended, as `ended` makes it.
    """

    identity: Identity
    now: float
    link: ConnectionState
    service: bool
    pause: Pause | None
    entries: Iterable[JobRecord]
    started: Mapping[str, float]
    shown: Callable[[JobRecord], float | None]
    rules: InteractiveRules
    past: list[Row]

    @property
    def paused(self) -> bool:
        """Whether nothing is started."""
        return self.pause is not None and self.pause.paused


def snapshot(scene: ViewInput) -> Row:
    """Return the picture, as the window gets it."""
    entries = sorted(scene.entries, key=order)
    return {
        "workstation": scene.identity.workstation,
        "user": scene.identity.user,
        "now": scene.now,
        "broker": scene.link.state,
        "since": scene.link.since,
        "service": "up" if scene.service else "absent",
        "paused": _paused(scene.pause),
        "offers": [
            _offer(entry, scene)
            for entry in entries
            if entry.state in _OFFERS and entry.shown_at is not None
        ],
        "running": [
            _running(entry, scene.started[entry.job.id])
            for entry in entries
            if entry.state is State.STARTED and entry.job.id in scene.started
        ],
        "history": scene.past,
    }


def ended(entry: JobRecord) -> Row:
    """Return the row of a job that ended, of which the agent has the final report."""
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


def _offer(entry: JobRecord, scene: ViewInput) -> Row:
    job = entry.job
    optional = job.requirement is Requirement.OPTIONAL
    deadline = scene.rules.deadline(entry, scene.now)
    return {
        **_job(job),
        "requirement": str(job.requirement),
        "state": str(entry.state),
        "shown_at": scene.shown(entry),
        "mandatory_at": entry.mandatory_at,
        "deadline": _time(deadline),
        "countdown": deadline - scene.rules.countdown <= scene.now,
        "expires_at": _time(entry.expires_at),
        "timeout": job.command.timeout.total_seconds(),
        "until": entry.until if entry.state is State.POSTPONED else None,
        "starts_at": _starts_at(entry, scene),
        "postponements_left": entry.postponements_left,
        "min_interval": job.min_interval.total_seconds(),
        "may_decline": optional and entry.state in (State.OFFERED, State.POSTPONED),
    }


def _starts_at(entry: JobRecord, scene: ViewInput) -> float | None:
    """Return when an accepted job starts that waits for a maintenance window."""
    if entry.state is not State.ACCEPTED or scene.paused:
        return None
    start = scene.rules.host.start(entry.job, scene.now, scene.now)
    return _time(start) if start > scene.now else None


def _running(entry: JobRecord, started_at: float) -> Row:
    return {
        **_job(entry.job),
        "started_at": started_at,
        "timeout": entry.job.command.timeout.total_seconds(),
        "may_stop": entry.job.command.user_may_stop,
    }


def _time(seconds: float) -> float | None:
    return None if seconds == NEVER else seconds
