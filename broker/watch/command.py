"""`pcm watch`: how a job goes, live on a terminal, a line a report elsewhere, or as JSON."""

import argparse
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, Parser, WrongUse
from broker.cli.session import name, seconds, whole_id, with_dispatcher
from broker.cli.terminal import printable
from broker.cli.time_formats import local
from schemas.text import listed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.client.dispatcher import Dispatcher
    from broker.watch.live import View
    from broker.watch.tally import WatchTally
    from schemas import Report

_FEW = 30  # workstations, each of which has a line at the end
_GROUPS = 20
_NAMES = 10


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


def check_options(arguments: argparse.Namespace) -> None:
    """Check the options of a command that watches only where it is asked to.

    Raises:
        WrongUse: they say for how long, but not that.
    """
    if arguments.give_up_after is not None and not arguments.wait:
        raise WrongUse("--give-up-after: says how long to watch: give --wait, too")


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    command = commands.add_parser(
        "watch",
        help="follow a job until it has ended everywhere",
        description="Follows a job until it has ended on every workstation that received it or"
        " that it names. On a terminal it shows how many are in which state, of those that the"
        " history expects, how fast they end, and each kind of failure once; elsewhere it prints"
        " a line a report. Those that are off, and have not received the job, are not waited"
        " for, but counted at the end. Ctrl-C ends the watching, not the job.",
        parents=[options()],
    )
    command.add_argument("job", metavar="JOB", type=name, help="its id, or the beginning")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    job = whole_id(arguments.job)
    return with_dispatcher(
        lambda dispatcher: watch(
            dispatcher, job, as_json=arguments.json, limit=arguments.give_up_after
        )
    )


async def watch(
    dispatcher: "Dispatcher", job_id: str, *, as_json: bool, limit: float | None
) -> int:
    """Follow a job to its end, or for so many seconds at most.

    Returns:
        The exit status: whether it succeeded everywhere.
    """
    import asyncio

    from broker.amqp.timeouts import timeout
    from broker.client.progress import Progress
    from broker.watch.tally import WatchTally

    progress = Progress(job_id)
    tally = WatchTally(progress)
    gave_up = False
    try:
        async with _display(tally, as_json=as_json) as view:
            try:
                async with timeout(limit):
                    async for report in dispatcher.follow(job_id, progress):
                        _tell(report, tally, view, as_json=as_json)
            except TimeoutError:
                gave_up = True
    except asyncio.CancelledError:
        print(f"pcm: the job goes on; pcm watch {job_id} follows it again", file=sys.stderr)
        raise
    if not as_json:
        _summarize(tally, gave_up=gave_up)
    return DONE if progress.succeeded else FAILED


@asynccontextmanager
async def _display(tally: "WatchTally", *, as_json: bool) -> "AsyncIterator[View | None]":
    """Show the live view on a terminal; elsewhere there is none."""
    from broker.watch.expected import expecting

    if as_json:
        yield None
    elif not sys.stdout.isatty():
        async with expecting(tally):
            yield None
    else:
        from broker.watch.live import shown

        async with expecting(tally), shown(tally) as view:
            yield view


def _tell(report: "Report", tally: "WatchTally", view: "View | None", *, as_json: bool) -> None:
    failure = tally.add(report)
    if as_json:
        print(report.body().decode(), flush=True)
    elif view is None:
        print(line(report), flush=True)
    elif failure is not None:
        view.tell(failure)


def line(report: "Report") -> str:
    """Return a report in one line."""
    parts = [f"{report.workstation:<16} {report.state:<14} {report.agent:<16}"]
    if result := report.result:
        if result.exit_code is not None:
            parts.append(f"exit {result.exit_code}")
        parts.append(f"{result.duration.total_seconds():.2f}s")
        if result.restart_required:
            parts.append("restart needed")
    if report.until:
        parts.append(f"until {local(report.until.timestamp())}")
    if report.reason and not (result and report.reason == f"exit code {result.exit_code}"):
        parts.append(report.reason)
    if text := _begin_of_output(report):
        parts.append(text)
    return printable("  ".join(parts).rstrip())


def _begin_of_output(report: "Report") -> str:
    """Return the first line that a command wrote; dots after it tell that there is more."""
    from schemas.report import first_line

    text, result = first_line(report), report.result
    if result is None:
        return text
    lines = sum(len(str(stream).splitlines()) for stream in (result.stdout, result.stderr))
    return f"{text} ..." if lines > 1 else text


def _summarize(tally: "WatchTally", *, gave_up: bool) -> None:
    progress = tally.progress
    if sys.stdout.isatty():
        _print_ends(tally)
    if gave_up:
        names = listed(sorted(progress.waiting), _NAMES)
        print(f"gave up waiting for {names or 'the first workstation'}")
    print(f"{progress.job_id}: {tally}")
    unheard = frozenset() if progress.over else tally.unheard
    if unheard:
        names = listed(sorted(unheard), _NAMES)
        print(f"not received, as far as is known: {names}; it waits for them, and")
        print(f"pcm show {progress.job_id} tells later what came of it")


def _print_ends(tally: "WatchTally") -> None:
    """Print a line a workstation if they are few, else a line for all that failed alike."""
    reports = tally.progress.workstations
    if len(reports) <= _FEW:
        for _, report in sorted(reports.items()):
            print(line(report))
        return
    failures = sorted(tally.failures.values(), key=lambda failure: -failure.count)
    for failure in failures[:_GROUPS]:
        print(f"{failure.count:>6} {printable(failure.text)}  ({failure.example})")
    if others := failures[_GROUPS:]:
        print(f"{sum(failure.count for failure in others):>6} in {len(others)} other ways")
