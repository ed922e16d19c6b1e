"""`pcm collect` and `pcm history`: update, inspect and rebuild the history."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from broker import log
from broker.cli.command_line import DONE, Parser, UsageError
from broker.cli.session import history_errors, run_async, run_until_stopped
from broker.cli.time_formats import iso, local
from broker.collect.rebuild import JobsWouldBeLost, rebuild_history
from broker.collect.service import run_collector
from broker.history.queries.status import history_status
from broker.history.source import Source

if TYPE_CHECKING:
    from broker.history.queries.status import HistoryStatus


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    collect = commands.add_parser(
        "collect",
        description="Reads reports into the history as they arrive, and sends the due jobs of"
        " schedules, until SIGTERM. Without a collector, each command that queries the history"
        " reads the new reports first. Of several collectors one is active; the others are on"
        " standby.",
    )
    collect.set_defaults(run=_collect)
    actions = commands.add_parser(
        "history",
        description="The history is a database, read from the stream pcm.reports. It keeps jobs"
        " longer than the stream.",
    ).add_subparsers(dest="action", required=True, metavar="status|rebuild")
    status = actions.add_parser(
        "status",
        help="show its state",
        description="Shows the database, its contents, the read position in the stream, what is"
        " missing, and the active collector. Reads nothing new.",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    rebuild = actions.add_parser(
        "rebuild",
        help="empty it, and read the whole stream again",
        description="Empties the history and reads the whole stream again. Jobs that the stream"
        " has dropped by age or size are lost, with their reports and output; so are rollouts, and"
        " workstations not seen since. Active schedules are kept. A newer version of pcm needs no"
        " rebuild.",
    )
    rebuild.add_argument(
        "--yes",
        action="store_true",
        help="rebuild even if jobs would be lost",
    )
    rebuild.set_defaults(run=_rebuild)


def _collect(_arguments: argparse.Namespace) -> int:
    log.configure(program="collect")
    with history_errors():
        run_until_stopped(run_collector())
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    with history_errors():
        state = history_status()
    if arguments.json:
        print(json.dumps(asdict(state) | {"oldest_job": iso(state.oldest_job)}, indent=2))
    else:
        _print(state)
    return DONE


def _print(state: "HistoryStatus") -> None:
    source = Source(state.cluster, state.virtual_host)
    rows = {
        "database": state.database,
        "read from": str(source) if source.virtual_host else "no broker yet",
        "holds": f"{state.jobs:,} jobs, {state.outcomes:,} outcomes, {state.reports:,} reports,"
        f" {state.workstations:,} workstations",
        "oldest job": local(state.oldest_job) or "none",
        "read up to": f"offset {state.next_offset:,} of the stream",
        "collector": state.collector or "none: each query reads new reports first",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    if state.rejected:
        print(f"{'rejected':<12}{state.rejected:,} entries, not counted: pcm dead list")
    for gap in state.gaps:
        print(f"{'missing':<12}{gap}")


def _rebuild(arguments: argparse.Namespace) -> int:
    async def rebuild() -> int:
        state = await rebuild_history(lose_jobs=arguments.yes)
        print(f"rebuilt: {state.jobs:,} jobs, {state.reports:,} reports")
        return DONE

    with history_errors():
        try:
            return run_async(rebuild())
        except JobsWouldBeLost as error:
            raise UsageError(f"history rebuild: {error}; use --yes to rebuild anyway") from error
