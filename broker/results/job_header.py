"""What a job is, as it stands above what came of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from broker.cli.time_formats import moment, span
from broker.results.query_session import few
from broker.results.signers import signed_by
from schemas.text import counted

if TYPE_CHECKING:
    from broker.history.queries import Accounts, JobRow
    from schemas import Cancellation, Job

_TARGETS = 10


def job_head(accounts: "Accounts", row: "JobRow") -> list[tuple[str, str]]:
    """Return what a job is: a name and a text for each line."""
    from schemas import Cancellation

    asked = [
        record
        for record in accounts.records("cancellation", row.id)
        if isinstance(record, Cancellation)
    ]
    body = accounts.body(row.id)
    lines = [
        ("job", row.id),
        ("name", row.name),
        ("comment", body.comment if body else ""),
        ("kind", " ".join(part for part in (row.context, row.requirement) if part)),
        ("command", row.command),
        *_wanted(body),
        ("for", few(row.targets.split(), _TARGETS)),
        ("not for", few([str(target) for target in body.excluded], _TARGETS) if body else ""),
        ("sent by", row.sender),
        ("signed by", signed_by(accounts, row.id)),
        ("sent", moment(row.created_at, accounts.now)),
        *_times(row, body, accounts.now),
        ("rerun of", row.rerun_of or ""),
        ("wave of", row.rollout or ""),
        ("occurrence of", row.schedule or ""),
        *(("cancelled", _cancelled(one, accounts.now)) for one in asked),
    ]
    if body is None:
        lines.append(("known of it", "its reports alone: when it was sent, nobody read the stream"))
    return [(name, text) for name, text in lines if text]


def _wanted(body: "Job | None") -> Iterator[tuple[str, str]]:
    if body is None:
        return
    command = body.command
    yield "time limit", span(command.timeout.total_seconds())
    yield "runs as", command.run_as or ""
    yield "in folder", command.cwd or ""
    if command.secrets is not None:
        count = len(command.secrets.keys)
        sealed = f"sealed for {counted(count, 'agent')}"
        yield "secrets", f"{', '.join(command.secrets.names)} ({sealed})"
    yield "platforms", ", ".join(sorted(command.platforms))
    yield "supersedes", body.supersedes or ""
    yield "postponement", _postponed(body)
    said = {
        "runs in a shell": command.shell,
        "needs the user's input": command.user_input_required,
        "may be stopped by the user": command.user_may_stop,
        "survives its agent": command.survives_agent,
        "may start again after a crash": command.rerun_interrupted,
        "keeps to maintenance windows": body.respects_windows,
    }
    yield "and", ", ".join(text for text, so in said.items() if so)


def _postponed(body: "Job") -> str:
    """Say how a user may postpone a job, where the job says anything of it."""
    most, least = body.max_postponements, body.min_interval.total_seconds()
    often = "" if most is None else "never" if most == 0 else f"{most} times at most"
    return ", ".join(filter(None, [often, f"for {span(least)} at least" if least else ""]))


def _times(row: "JobRow", body: "Job | None", now: float) -> Iterator[tuple[str, str]]:
    from schemas import WallClock

    for label, name in (
        ("offered at", "offer_at"),
        ("mandatory at", "mandatory_at"),
        ("expires at", "expires_at"),
    ):
        given: Any = getattr(body, name, None)
        at: float | None = getattr(row, name)
        if isinstance(given, WallClock):
            yield label, f"{given.local:%Y-%m-%d %H:%M} on each workstation's own clock"
        elif at is not None:
            yield label, moment(at, now)


def _cancelled(asked: "Cancellation", now: float) -> str:
    where = f" on {few(asked.workstations)}" if asked.workstations else ""
    why = f": {asked.reason}" if asked.reason else ""
    return f"by {asked.sender}{where}, {moment(asked.created_at.timestamp(), now)}{why}"
