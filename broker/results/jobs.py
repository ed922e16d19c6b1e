"""`pcm jobs`: list the jobs and their states."""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import name, seconds, valid_text
from broker.cli.terminal import Cell, Column, print_table
from broker.cli.time_formats import age, local, relative
from broker.results.query_session import (
    add_state_option,
    counts_text,
    job_fields,
    query_session,
    selected_states,
    state_text,
    unknown_workstation_hint,
)
from schemas.times import parse_moment

if TYPE_CHECKING:
    from broker.history.history import History
    from broker.history.queries.rows import JobRow

COLUMNS = (
    Column("job"),
    Column("name", least=12),
    Column("context", rank=5),
    Column("requirement", rank=4),
    Column("sender", rank=3, least=8),
    Column("created at"),
    Column("counts", rank=1, least=24),
    Column("cancelled by", rank=2, least=8),
)
_STATE = Column("state")  # with --workstation


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    jobs = commands.add_parser(
        "jobs",
        description="Lists jobs, the newest first, with the number of workstations in each state."
        " Several options narrow the list together.",
        epilog="examples:\n"
        "  pcm jobs --state failures --since 2d     failed somewhere, within two days\n"
        "  pcm jobs --state waiting --text office   not started yet somewhere\n"
        "  pcm jobs --sender ada --state ended      ended everywhere\n"
        "  pcm jobs --workstation ws-042            for one workstation",
    )
    jobs.add_argument(
        "--workstation",
        metavar="W",
        type=name,
        help="only jobs for this workstation, with their state there; --state selects by it",
    )
    add_state_option(jobs, "only jobs in this state on some workstation (ended: on all)")
    jobs.add_argument(
        "--since",
        metavar="T",
        type=_since,
        help="only jobs created since: a duration ago, such as 2d or 1h30m, or 2026-11-30T02:00Z",
    )
    jobs.add_argument(
        "--sender",
        metavar="TEXT",
        type=valid_text,
        default="",
        help="only jobs whose sender contains TEXT",
    )
    jobs.add_argument(
        "--text",
        metavar="TEXT",
        type=valid_text,
        default="",
        help="only jobs with TEXT in id, name, command or targets",
    )
    jobs.add_argument(
        "--limit", metavar="N", type=_count, default=50, help="number of jobs (default: 50)"
    )
    jobs.add_argument("--json", action="store_true", help="print JSON")
    jobs.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with query_session() as history:
        queries = history.jobs
        rows = queries.search(
            states=selected_states(arguments.state),
            workstation=arguments.workstation,
            since=arguments.since,
            sender=arguments.sender or "",
            text=arguments.text or "",
            most=arguments.limit + 1,
        )
        shown = rows[: arguments.limit]
        states = _states(history, arguments.workstation, shown)
        now = queries.now
    if arguments.json:
        fields = [job_fields(row) | _state_fields(arguments, states, row) for row in shown]
        print(json.dumps(fields, indent=2))
    elif shown:
        _print(shown, states, now)
    else:
        print("no jobs")
    if len(rows) > len(shown):
        print(f"pcm: there are more; --limit {10 * len(shown)} shows more", file=sys.stderr)
    return DONE


def _states(
    history: "History", workstation: str | None, rows: "list[JobRow]"
) -> dict[str, str] | None:
    """Return the jobs' states on the workstation of `--workstation`, by id; None without it."""
    if workstation is None:
        return None
    if not rows and not history.jobs.knows(workstation):
        near = unknown_workstation_hint(history, workstation)
        text = f"--workstation: {workstation}: no such workstation has checked in{near}"
        raise CommandError(text)
    return history.jobs.states_on(workstation, [row.id for row in rows])


def _state_fields(
    arguments: argparse.Namespace, states: dict[str, str] | None, row: "JobRow"
) -> dict[str, str]:
    if states is None:
        return {}
    return {"workstation": arguments.workstation, "state": states[row.id]}


def _print(rows: "list[JobRow]", states: dict[str, str] | None, now: float) -> None:
    cells = [_cells(row, now) for row in rows]
    if states is None:
        print_table(COLUMNS, cells)
        return
    first, *others = COLUMNS
    with_state = [(row[0], state_text(states[row[0]]), *row[1:]) for row in cells]
    print_table((first, _STATE, *others), with_state)


def _cells(row: "JobRow", now: float) -> tuple[Any, ...]:
    at = row.created_at
    created = Cell(f"{local(at, seconds=False)}, {relative(at, now)}", age(at, now))
    return (
        row.id,
        row.name,
        row.context,
        row.requirement,
        row.sender,
        created,
        counts_text(row.counts, row.restart_required),
        row.cancelled_by,
    )


def _since(text: str) -> float:
    """Parse an instant, or a duration before now."""
    if text[:1].isdigit() and "-" not in text:
        return time.time() - seconds(text)
    try:
        found = parse_moment(text, datetime.now(UTC))
    except ValueError:
        found = None
    if not isinstance(found, datetime):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write a duration such as 2d, or a time such as 2026-11-30T02:00Z"
        )
    return found.timestamp()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1")
    return int(text)
