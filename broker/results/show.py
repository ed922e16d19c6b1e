"""`pcm show`: show a job and its state on each workstation, or its reports from one."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import name
from broker.cli.terminal import Cell, Column, print_table, printable
from broker.cli.time_formats import age, iso, local, moment, span
from broker.results.downloads import download_fields, downloads_of, print_downloads
from broker.results.job_header import job_header
from broker.results.query_session import (
    ROWS,
    add_state_option,
    exit_text,
    job_fields,
    ordered,
    outcome_fields,
    outcome_state,
    query_session,
    reason_text,
    selected_states,
    shares,
    state_text,
    unknown_workstation_hint,
)
from broker.results.signers import signers

if TYPE_CHECKING:
    from broker.history.history import History
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.packages import ContentRow
    from broker.history.queries.rows import Event, FailureGroup, JobRow, OutcomeRow

_BAR = 30  # characters
FAILURE_COLUMNS = (
    Column("count", right=True),
    Column("state", rank=2),
    Column("exit code", right=True),
    Column("line", least=24),
    Column("example", rank=1, least=12),
)
OUTCOME_COLUMNS = (
    Column("workstation", least=12),
    Column("state"),
    Column("at", rank=2),
    Column("agent", rank=4, least=7),
    Column("exit code", rank=1, right=True),
    Column("duration", rank=3, right=True),
    Column("reason", least=16),
)
REPORT_COLUMNS = (
    Column("at"),
    Column("state"),
    Column("agent", rank=1, least=7),
    Column("reason", least=16),
)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    show = commands.add_parser(
        "show",
        description="Shows a job, the number of workstations in each state, its failures grouped,"
        " and a row for each workstation, started and failed ones first.",
        epilog="see also: pcm output (the output of its commands), pcm why (explains one"
        " workstation's state), pcm report (HTML page or CSV)",
    )
    show.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    show.add_argument(
        "--workstation", metavar="W", type=name, help="all reports of this workstation, in order"
    )
    add_state_option(show, "only workstations in this state")
    show.add_argument(
        "--all", action="store_true", help=f"all workstations (default: {ROWS} at most)"
    )
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with query_session() as history:
        queries = history.jobs
        row = queries.find(arguments.job)
        if arguments.workstation is not None:
            return _show_workstation(history, row, arguments.workstation, as_json=arguments.json)
        states = selected_states(arguments.state)
        outcomes = queries.outcomes(row.id, states, most=None if arguments.all else ROWS)
        counts = row.counts if states is None else {state: row.counts[state] for state in states}
        left_out = max(0, sum(counts.values()) - len(outcomes))
        groups = queries.failures(row.id)
        downloads = downloads_of(history, row.id, outcomes)
        if arguments.json:
            _print_json(queries, row, outcomes, groups, left_out, downloads)
        else:
            _print(queries, row, outcomes, groups, left_out)
            print_downloads(downloads)
    return DONE


def _print_json(
    queries: "JobQueries",
    row: "JobRow",
    outcomes: "list[OutcomeRow]",
    groups: "list[FailureGroup]",
    left_out: int,
    downloads: "list[ContentRow]",
) -> None:
    body = queries.body(row.id)
    fields = job_fields(row) | {
        "sent": None if body is None else body.model_dump(mode="json", exclude_none=True),
        "signatures": [verdict._asdict() for verdict in signers(queries, row.id)],
        "failure_groups": [vars(group) for group in groups],
        "workstations": [outcome_fields(outcome) for outcome in outcomes],
        "downloads": [download_fields(download) for download in downloads],
        "left_out": left_out,
    }
    print(json.dumps(fields, indent=2))


def _print(
    queries: "JobQueries",
    row: "JobRow",
    outcomes: "list[OutcomeRow]",
    groups: "list[FailureGroup]",
    left_out: int,
) -> None:
    for label, text in job_header(queries, row):
        print(f"{label:<14}{printable(text)}")
    print()
    _print_counts(row)
    if groups:
        print("\nFailures:")
        print_table(FAILURE_COLUMNS, [_group_cells(group) for group in groups])
    if outcomes:
        print()
        _print_outcomes(outcomes, queries.now)
    if left_out:
        print(f"\n{left_out:,} more workstations; --all shows them, --state selects")


def _print_counts(row: "JobRow") -> None:
    counts = ordered(row.counts)
    total = row.counts.total()
    for (state, count), share in zip(counts, shares([count for _, count in counts]), strict=True):
        bar = "█" * max(1, round(_BAR * count / total))
        print(f"{state_text(state):<16}{count:>9,}  {share:>5} %  {bar}")
    print(f"{'total':<16}{total:>9,}" + ("  100.0 %" if total else ""))
    if row.restart_required:
        print(f"{'restart required':<16}{row.restart_required:>9,}")


def _group_cells(group: "FailureGroup") -> tuple[Any, ...]:
    code = exit_text(group.exit_code, group.signal)
    return (f"{group.count:,}", state_text(group.state), code, group.line, group.example)


def _print_outcomes(outcomes: "list[OutcomeRow]", now: float) -> None:
    rows = [
        (
            outcome.workstation,
            outcome_state(outcome),
            "" if outcome.at is None else Cell(local(outcome.at), age(outcome.at, now)),
            outcome.agent,
            exit_text(outcome.exit_code, outcome.signal),
            "" if outcome.duration is None else _duration_text(outcome.duration),
            _outcome_reason(outcome, now),
        )
        for outcome in outcomes
    ]
    print_table(OUTCOME_COLUMNS, rows)


def _duration_text(duration: float) -> str:
    return f"{duration:.1f} s" if duration < 60 else span(duration)  # noqa: PLR2004 - seconds


def _outcome_reason(outcome: "OutcomeRow", now: float) -> str:
    until = "" if outcome.until is None else f"until {moment(outcome.until, now)}"
    return "; ".join(part for part in (until, reason_text(outcome)) if part)


# One workstation


def _show_workstation(history: "History", row: "JobRow", workstation: str, *, as_json: bool) -> int:
    queries = history.jobs
    outcome = queries.outcome(row.id, workstation)
    events = queries.events(row.id, workstation)
    if outcome is None and not events:
        raise CommandError(
            f"--workstation: {row.id} is not for {workstation};"
            f" pcm why {row.id} {workstation} explains it"
            f"{unknown_workstation_hint(history, workstation)}"
        )
    if as_json:
        reports = [
            vars(event) | {"at": iso(event.at), "until": iso(event.until)} for event in events
        ]
        fields = {"job": row.id, "workstation": workstation, "reports": reports}
        print(json.dumps({**fields, "outcome": outcome and outcome_fields(outcome)}, indent=2))
        return DONE
    print(f"{row.id}  {printable(row.name)}")
    state = "no state"
    if outcome is not None:
        state = outcome_state(outcome)
    print(f"{workstation}: {state}\n")
    if events:
        print_table(REPORT_COLUMNS, [_event_cells(event, queries.now) for event in events])
    else:
        print("no reports")
    return DONE


def _event_cells(event: "Event", now: float) -> tuple[str, ...]:
    until = "" if event.until is None else f"until {moment(event.until, now)}"
    text = "; ".join(part for part in (until, event.reason) if part)
    return (local(event.at), state_text(event.state), event.agent, text)
