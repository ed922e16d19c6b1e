"""`pcm jobs`: the jobs that were sent, and how they stand."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, Parser, Wrong
from broker.cli.session import name, plain
from broker.cli.terminal import Cell, Column, print_table
from broker.cli.time_formats import age, local, relative
from broker.results.query_session import add_states, chosen, job_fields, looking, tally, words

if TYPE_CHECKING:
    from broker.history.queries import Accounts, JobRow

_COLUMNS = (
    Column("id"),
    Column("name", least=12),
    Column("kind", rank=4),
    Column("sender", rank=3, least=8),
    Column("created"),
    Column("workstations", rank=1, least=24),
    Column("cancelled", rank=2, least=8),
)
_STATE = Column("state")


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
        "  pcm jobs --sender ada --state ended      what has ended everywhere\n"
        "  pcm jobs --workstation ws-042            what is for one workstation",
    )
    jobs.add_argument(
        "--workstation",
        metavar="W",
        type=name,
        help="only jobs that are for it, with their state there, of which --state is then said",
    )
    add_states(jobs, "only jobs that are so on some workstation (ended: on all)")
    jobs.add_argument(
        "--since",
        metavar="T",
        type=_since,
        help="only jobs made since: so long ago, such as 2d or 1h30m, or 2026-11-30T02:00Z",
    )
    jobs.add_argument(
        "--sender",
        metavar="TEXT",
        type=plain,
        default="",
        help="only of senders with this in their name",
    )
    jobs.add_argument(
        "--text",
        metavar="TEXT",
        type=plain,
        default="",
        help="only with this in id, name, command or targets",
    )
    jobs.add_argument(
        "--limit", metavar="N", type=_count, default=50, help="so many at most (default: 50)"
    )
    jobs.add_argument("--json", action="store_true", help="print JSON")
    jobs.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with looking() as history:
        accounts = history.accounts
        rows = accounts.search(
            states=chosen(arguments.state),
            workstation=arguments.workstation,
            since=arguments.since,
            sender=arguments.sender or "",
            text=arguments.text or "",
            most=arguments.limit + 1,
        )
        shown = rows[: arguments.limit]
        there = _states(accounts, arguments.workstation, shown)
        now = accounts.now
    if arguments.json:
        print(
            json.dumps([job_fields(row) | _there(arguments, there, row) for row in shown], indent=2)
        )
    elif shown:
        _print(shown, there, now)
    else:
        print("no jobs")
    if len(rows) > len(shown):
        print(f"pcm: there are more; --limit {10 * len(shown)} shows more", file=sys.stderr)
    return DONE


def _states(
    accounts: "Accounts", workstation: str | None, rows: "list[JobRow]"
) -> dict[str, str] | None:
    """Return by their ids how jobs stand on the workstation that is asked about, if one is."""
    if workstation is None:
        return None
    if not rows and not accounts.knows(workstation):
        raise Wrong(f"--workstation: {workstation}: no such workstation has checked in")
    return accounts.states_on(workstation, [row.id for row in rows])


def _there(
    arguments: argparse.Namespace, there: dict[str, str] | None, row: "JobRow"
) -> dict[str, str]:
    if there is None:
        return {}
    return {"workstation": arguments.workstation, "state": there[row.id]}


def _print(rows: "list[JobRow]", there: dict[str, str] | None, now: float) -> None:
    cells = [_cells(row, now) for row in rows]
    if there is None:
        print_table(_COLUMNS, cells)
        return
    first, *others = _COLUMNS
    told = [(row[0], words(there[row[0]]), *row[1:]) for row in cells]
    print_table((first, _STATE, *others), told)


def _cells(row: "JobRow", now: float) -> tuple[Any, ...]:
    at = row.created_at
    created = Cell(f"{local(at, seconds=False)}, {relative(at, now)}", age(at, now))
    kind = f"{row.context} {row.requirement}"
    by = f"by {row.cancelled_by}" if row.cancelled_at is not None else ""
    return (row.id, row.name, kind, row.sender, created, tally(row), by)


def _since(text: str) -> float:
    """Read since when: an instant, or how long ago."""
    import time
    from datetime import UTC, datetime

    from broker.cli.session import seconds
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
