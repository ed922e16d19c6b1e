"""Describe a job in labelled lines, for `pcm show` and `pcm report`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from broker.cli.time_formats import moment, span
from broker.results.signers import signatures_text
from schemas import Cancellation, WallClock
from schemas.text import counted, listed

if TYPE_CHECKING:
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.rows import JobRow
    from schemas import Job

_MAX_TARGETS = 10


def job_header(queries: "JobQueries", row: "JobRow") -> list[tuple[str, str]]:
    """Return a job's description, a label and a text for each line."""
    cancellations = [
        record
        for record in queries.records("cancellation", row.id)
        if isinstance(record, Cancellation)
    ]
    body = queries.body(row.id)
    lines = [
        ("job", row.id),
        ("name", row.name),
        ("comment", body.comment if body else ""),
        ("context", row.context),
        ("requirement", row.requirement),
        ("command", row.command),
        *_package_fields(body),
        *_command_fields(body),
        ("targets", listed(row.targets.split(), _MAX_TARGETS)),
        (
            "excluded",
            listed([str(target) for target in body.excluded], _MAX_TARGETS) if body else "",
        ),
        ("sender", row.sender),
        ("signatures", signatures_text(queries, row.id)),
        ("created at", moment(row.created_at, queries.now)),
        *_times(row, body, queries.now),
        ("rerun of", row.rerun_of or ""),
        ("rollout", "" if row.is_rollout else row.rollout or ""),
        ("waves", f"pcm rollout show {row.id} shows them" if row.is_rollout else ""),
        ("schedule", row.schedule or ""),
        *(("cancelled", _cancellation_text(one, queries.now)) for one in cancellations),
    ]
    if body is None:
        lines.append(("note", "the history has only its reports: the stream was not read then"))
    return [(label, text) for label, text in lines if text]


def _command_fields(body: "Job | None") -> Iterator[tuple[str, str]]:
    if body is None:
        return
    command = body.command
    yield "timeout", span(command.timeout.total_seconds())
    yield "run as", command.run_as or ""
    yield "cwd", command.cwd or ""
    if command.secrets is not None:
        count = len(command.secrets.keys)
        sealed = f"sealed for {counted(count, 'agent')}"
        yield "secrets", f"{', '.join(command.secrets.names)} ({sealed})"
    yield "platforms", ", ".join(sorted(command.platforms))
    yield "supersedes", body.supersedes or ""
    yield "postponement", _postponement_text(body)
    options = {
        "runs in a shell": command.shell,
        "needs user input": command.user_input_required,
        "may be stopped by the user": command.user_may_stop,
        "survives its agent": command.survives_agent,
        "leaves processes running": command.leaves_processes,
        "may start again after a crash": command.rerun_interrupted,
        "respects maintenance windows": body.respects_windows,
    }
    yield "options", ", ".join(text for text, is_set in options.items() if is_set)


def _package_fields(body: "Job | None") -> Iterator[tuple[str, str]]:
    if body is None:
        return
    if body.command.script is not None:
        yield "script", f"{len(body.command.script):,} bytes, sent with the job"
    if body.only_if is not None:
        yield "only if", " or ".join(map(str, body.only_if))
    if (package := body.package) is None:
        return
    channel = f", by {package.channel} number {package.channel_serial}" if package.channel else ""
    yield "package", f"{package}, {package.command}{channel}"
    yield "requires", ", ".join(map(str, package.requires))
    yield "manifest", package.manifest


def _postponement_text(body: "Job") -> str:
    """Return how a user may postpone a job; empty if the job does not limit it."""
    most, least = body.max_postponements, body.min_interval.total_seconds()
    often = "" if most is None else "never" if most == 0 else f"{most} times at most"
    return ", ".join(filter(None, [often, f"for {span(least)} at least" if least else ""]))


def _times(row: "JobRow", body: "Job | None", now: float) -> Iterator[tuple[str, str]]:
    for name in ("offer_at", "mandatory_at", "expires_at"):
        given: Any = getattr(body, name, None)
        at: float | None = getattr(row, name)
        label = name.replace("_", " ")
        if isinstance(given, WallClock):
            yield label, f"{given.local:%Y-%m-%d %H:%M} on each workstation's clock"
        elif at is not None:
            yield label, moment(at, now)


def _cancellation_text(cancellation: "Cancellation", now: float) -> str:
    names = listed(cancellation.workstations, _MAX_TARGETS)
    where = f" on {names}" if names else ""
    reason = f": {cancellation.reason}" if cancellation.reason else ""
    at = moment(cancellation.created_at.timestamp(), now)
    return f"by {cancellation.sender}{where}, {at}{reason}"
