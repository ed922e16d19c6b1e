"""`pcm watch`: how a job goes, live on a terminal, a line a report elsewhere, or as JSON."""

import argparse
import asyncio
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from broker.command_line import DONE, FAILED, Parser
from broker.commands.session import name, seconds, with_dispatcher

if TYPE_CHECKING:
    from rich.table import Table

    from broker.dispatcher import Dispatcher
    from broker.progress import Progress
    from schemas import Report

_ROWS = 30  # workstations shown at once on a terminal; the rest is counted
_COLORS = {"succeeded": "green", "started": "cyan"}


def options() -> Parser:
    """Return the options of all commands that watch."""
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, a line a report")
    parser.add_argument(
        "--give-up-after",
        metavar="D",
        type=seconds,
        help="stop watching after so long, such as 10m",
    )
    return parser


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    command = commands.add_parser(
        "watch",
        help="follow a job until it has ended everywhere",
        description="Follows a job until it has ended on every workstation that received it or"
        " that it names.",
        parents=[options()],
    )
    command.add_argument("job", metavar="JOB", type=name, help="the job's id")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    return with_dispatcher(
        lambda dispatcher: watch(
            dispatcher, arguments.job, as_json=arguments.json, limit=arguments.give_up_after
        )
    )


async def watch(
    dispatcher: "Dispatcher", job_id: str, *, as_json: bool, limit: float | None
) -> int:
    """Follow a job to its end, or for so many seconds at most.

    Returns:
        The exit status: whether it succeeded everywhere.
    """
    from broker.progress import Progress

    progress = Progress(job_id)
    gave_up = False
    with _display(progress, as_json=as_json) as display:
        try:
            async with asyncio.timeout(limit):
                async for report in dispatcher.follow(job_id, progress):
                    _tell(report, display, as_json=as_json)
        except TimeoutError:
            gave_up = True
    if not as_json:
        _summarize(progress, gave_up=gave_up)
    return DONE if progress.succeeded else FAILED


def _display(progress: "Progress", *, as_json: bool) -> AbstractContextManager[Any]:
    """Return the live view for a terminal; elsewhere there is none."""
    if as_json or not sys.stdout.isatty():
        return nullcontext()
    from rich.live import Live

    return Live(get_renderable=lambda: _table(progress), refresh_per_second=8, transient=True)


def _tell(report: "Report", display: Any, *, as_json: bool) -> None:
    if as_json:
        print(report.body().decode(), flush=True)
    elif display is None:
        print(line(report), flush=True)


def line(report: "Report") -> str:
    """Return a report in one line."""
    from schemas.report import first_line

    parts = [f"{report.workstation:<16} {report.state:<10} {report.agent:<16}"]
    if result := report.result:
        if result.exit_code is not None:
            parts.append(f"exit {result.exit_code}")
        parts.append(f"{result.duration.total_seconds():.2f}s")
    if report.until:
        parts.append(f"until {report.until.astimezone():%Y-%m-%d %H:%M:%S}")
    if report.reason:
        parts.append(report.reason)
    if text := first_line(report):
        parts.append(text)
    return "  ".join(parts).rstrip()


def _table(progress: "Progress") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from broker.progress import has_ended
    from schemas.report import first_line

    table = Table(box=None, pad_edge=False, caption=_counts(progress), caption_justify="left")
    for column in ("WORKSTATION", "STATE", "AGENT", "EXIT", "OUTPUT"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    reports = sorted(
        progress.workstations.values(), key=lambda report: (has_ended(report), report.workstation)
    )
    for report in reports[:_ROWS]:
        color = _COLORS.get(report.state, "red" if has_ended(report) else "yellow")
        code = report.result.exit_code if report.result else None
        table.add_row(
            report.workstation,
            Text(report.state, style=color),
            report.agent,
            "" if code is None else str(code),
            Text(first_line(report) or report.reason),
        )
    return table


def _counts(progress: "Progress") -> str:
    states = Counter(str(report.state) for report in progress.workstations.values())
    missing = len(progress.expected - progress.workstations.keys())
    parts = [f"{count} {state.replace('_', ' ')}" for state, count in states.most_common()]
    if missing:
        parts.append(f"{missing} not received")
    return ", ".join(parts) or "no workstation has received it yet"


def _summarize(progress: "Progress", *, gave_up: bool) -> None:
    if sys.stdout.isatty():
        for report in sorted(progress.workstations.values(), key=lambda found: found.workstation):
            print(line(report))
    waiting = sorted(progress.waiting)
    if gave_up:
        names = ", ".join(waiting[:10]) + (" ..." if len(waiting) > 10 else "")  # noqa: PLR2004
        print(f"gave up waiting for {names or 'the first workstation'}")
    print(f"{progress.job_id}: {_counts(progress)}")
