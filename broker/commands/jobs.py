"""`pcm jobs`: the jobs that were sent, and how they stand."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from broker.clock import local, relative
from broker.command_line import DONE, Parser
from broker.commands.looking import add_states, chosen, job_fields, looking, tally
from broker.commands.terminal import print_table

if TYPE_CHECKING:
    from broker.history.accounts import Accounts, JobRow

_COLUMNS = ("id", "name", "kind", "sender", "created", "workstations", "cancelled")


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    jobs = commands.add_parser(
        "jobs",
        help="the jobs that were sent, and how they stand",
        description="Lists jobs, the newest first, and on how many workstations each is in which"
        " state. Options together narrow the list.",
        epilog="examples:\n"
        "  pcm jobs --state failures --since 2d     what failed somewhere, of two days\n"
        "  pcm jobs --state waiting --text office   what still waits somewhere\n"
        "  pcm jobs --sender ada --state ended      what has ended everywhere",
    )
    add_states(jobs, "only jobs that are so on some workstation (ended: on all)")
    jobs.add_argument(
        "--since",
        metavar="T",
        type=_since,
        help="only jobs made since: so long ago, such as 2d or 1h30m, or 2026-11-30T02:00Z",
    )
    jobs.add_argument("--sender", metavar="TEXT", help="only of senders with this in their name")
    jobs.add_argument(
        "--text", metavar="TEXT", help="only with this in id, name, command or targets"
    )
    jobs.add_argument(
        "--limit", metavar="N", type=_count, default=50, help="so many at most (default: 50)"
    )
    jobs.add_argument("--json", action="store_true", help="print JSON")
    jobs.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with looking() as (accounts, _):
        where = _conditions(accounts, arguments)
        rows = accounts.jobs(*where, most=arguments.limit + 1)
        now = accounts.now
    shown = rows[: arguments.limit]
    if arguments.json:
        print(json.dumps([job_fields(row) for row in shown], indent=2))
    elif shown:
        cells = [_cells(row, now) for row in shown]
        print_table(_COLUMNS, cells, whole={"id", "created"})
    else:
        print("no jobs")
    if len(rows) > len(shown):
        print(f"pcm: there are more; --limit {10 * len(shown)} shows them", file=sys.stderr)
    return DONE


def _cells(row: "JobRow", now: float) -> tuple[str, ...]:
    created = f"{local(row.created_at, seconds=False)}, {relative(row.created_at, now)}"
    kind = f"{row.context} {row.requirement}"
    by = f"by {row.cancelled_by}" if row.cancelled_at is not None else ""
    return (row.id, row.name, kind, row.sender, created, tally(row.counts), by)


def _conditions(accounts: "Accounts", arguments: argparse.Namespace) -> list[Any]:
    """Return what the options ask, as conditions on the table of jobs."""
    from sqlalchemy import or_

    from broker.history.tables import jobs

    columns = jobs.c
    where: list[Any] = []
    if (states := chosen(arguments.state)) is not None:
        where.append(_in(accounts, states))
    if arguments.since is not None:
        where.append(columns.created_at >= arguments.since)
    if arguments.sender:
        where.append(columns.sender.icontains(arguments.sender, autoescape=True))
    if arguments.text:
        among = (columns.id, columns.name, columns.command, columns.targets)
        where.append(or_(*(one.icontains(arguments.text, autoescape=True) for one in among)))
    return where


def _in(accounts: "Accounts", states: list[str]) -> Any:
    """Return the condition of --state: `ended` is that nothing of the job waits or runs."""
    from sqlalchemy import or_

    from broker.history.accounts import RUNNING, STATES, WAITING

    is_open = (*WAITING, *RUNNING)
    ended = set(STATES) - set(is_open)
    if not ended <= set(states):
        return accounts.has_state(states)
    others = [state for state in states if state in is_open]
    over = ~accounts.has_state(is_open)
    return or_(over, accounts.has_state(others)) if others else over


def _since(text: str) -> float:
    """Read since when: an instant, or how long ago."""
    import time
    from datetime import UTC, datetime

    from broker.commands.session import seconds
    from schemas.times import parse_moment

    if text[:1].isdigit() and "-" not in text:
        return time.time() - seconds(text)
    try:
        found = parse_moment(text, datetime.now(UTC))
    except ValueError:
        found = None
    if not isinstance(found, datetime):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write how long ago, such as 2d, or a time such as 2026-11-30T02:00Z"
        )
    return found.timestamp()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1")
    return int(text)
