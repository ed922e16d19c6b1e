"""`pcm watch`: follow a job, live on a terminal, elsewhere one line a report, or as JSON."""

import argparse
import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from broker.amqp.timeouts import timeout
from broker.cli.command_line import DONE, FAILED, NoSuchJob, Parser, UsageError
from broker.cli.session import complete_id, name, seconds, with_dispatcher
from broker.cli.terminal import printable, printable_lines
from broker.cli.time_formats import local
from broker.client.progress import Progress
from broker.watch.expected import read_queued
from broker.watch.missing import announce_missing
from broker.watch.tally import WatchTally
from schemas.reports.report import first_line
from schemas.text import listed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.client.dispatcher import Dispatcher
    from broker.watch.live import View
    from schemas import Report

_MAX_END_LINES = 30  # workstations that have a line each at the end
_MAX_GROUPS = 20
_MAX_NAMES = 10
_INDENT = "    "


def options() -> Parser:
    """Return the options of the commands that watch jobs."""
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, one line a report")
    parser.add_argument(
        "--give-up-after",
        metavar="D",
        type=seconds,
        help="stop watching after this time, such as 10m",
    )
    return parser


def check_watch_options(arguments: argparse.Namespace) -> None:
    """Check the options of a command that watches only with `--wait`.

    Raises:
        UsageError: `--give-up-after` without `--wait`.
    """
    if arguments.give_up_after is not None and not arguments.wait:
        raise UsageError("--give-up-after: needs --wait")


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    command = commands.add_parser(
        "watch",
        description="Follows a job until it has ended on every workstation that received it or"
        " that it names. A terminal shows the number of workstations in each state, how fast the"
        " job ends, and each kind of failure once. Elsewhere each report is printed on a line."
        " Workstations that are off, where the job is still queued, are counted at the end, but"
        " not waited for. Ctrl-C ends the watching, not the job. Of a rollout each change of its"
        " state is printed.",
        parents=[options()],
    )
    command.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    job = complete_id(arguments.job)
    try:
        return with_dispatcher(
            lambda dispatcher: watch_job(
                dispatcher, job, as_json=arguments.json, limit=arguments.give_up_after
            )
        )
    except NoSuchJob:
        from broker.watch.rollout import watch_rollout  # pcm send watches jobs alone

        status = watch_rollout(job, as_json=arguments.json, limit=arguments.give_up_after)
        if status is None:
            raise
        return status


async def watch_job(
    dispatcher: "Dispatcher", job_id: str, *, as_json: bool, limit: float | None
) -> int:
    """Follow a job until it has ended, or for `limit` seconds.

    Returns:
        The exit status: whether the job succeeded everywhere.
    """
    progress = Progress(job_id)
    tally = WatchTally(progress)
    gave_up = False
    try:
        async with announce_missing(tally), _display(tally, as_json=as_json) as view:
            try:
                async with timeout(limit):
                    async for report in dispatcher.follow(job_id, progress):
                        _add(report, tally, view, as_json=as_json)
            except TimeoutError:
                gave_up = True
    except asyncio.CancelledError:
        print(f"pcm: the job continues; to follow it again: pcm watch {job_id}", file=sys.stderr)
        raise
    if not as_json:
        _summarize(tally, gave_up=gave_up)
    return DONE if progress.succeeded else FAILED


@asynccontextmanager
async def _display(tally: "WatchTally", *, as_json: bool) -> "AsyncIterator[View | None]":
    """Show the live view on a terminal; yield None elsewhere."""
    if as_json:
        yield None
    elif not sys.stdout.isatty():
        async with read_queued(tally):
            yield None
    else:
        from broker.watch.live import show_live

        async with read_queued(tally), show_live(tally) as view:
            yield view


def _add(report: "Report", tally: "WatchTally", view: "View | None", *, as_json: bool) -> None:
    failure = tally.add(report)
    if as_json:
        print(report.body().decode(), flush=True)
    elif view is None:
        print(text(report), flush=True)
    elif failure is not None:
        view.print(failure)


def format_report(report: "Report") -> str:
    """Format a report in one line."""
    parts = [f"{report.workstation:<16} {report.state:<14} {report.agent:<16}"]
    if result := report.result:
        if result.exit_code is not None:
            parts.append(f"exit {result.exit_code}")
        parts.append(f"{result.duration.total_seconds():.2f}s")
        if result.restart_required:
            parts.append("restart required")
    if report.until:
        parts.append(f"until {local(report.until.timestamp())}")
    if report.reason and not (result and report.reason == f"exit code {result.exit_code}"):
        parts.append(report.reason)
    if output := _one_line(report):
        parts.append(output)
    return printable("  ".join(parts).rstrip())


def text(report: "Report") -> str:
    """Format a report; the output of a command follows in lines of its own, if it is several."""
    output = _output(report)
    return "\n".join((format_report(report), *(f"{_INDENT}{row}".rstrip() for row in output)))


def _output(report: "Report") -> list[str]:
    """Return the lines that a command wrote; none if its only line stands beside the report."""
    if report.result is None or _one_line(report):
        return []
    stdout, stderr = (
        printable_lines(str(stream)).splitlines()
        for stream in (report.result.stdout, report.result.stderr)
    )
    return [*stdout, *(["-- stderr", *stderr] if stderr else [])]


def _one_line(report: "Report") -> str:
    """Return the line that a command wrote; empty if it wrote none or several."""
    if report.result is None:
        return ""
    streams = (report.result.stdout, report.result.stderr)
    count = sum(len(str(stream).splitlines()) for stream in streams)
    return first_line(report) if count == 1 else ""


def _summarize(tally: "WatchTally", *, gave_up: bool) -> None:
    progress = tally.progress
    if sys.stdout.isatty():
        _print_ends(tally)
    if gave_up:
        names = listed(sorted(progress.waiting), _MAX_NAMES)
        print(f"gave up waiting for {names or 'the first workstation'}")
    print(f"{progress.job_id}: {tally}")
    if progress.unreachable:
        names = listed(sorted(progress.unreachable), _MAX_NAMES)
        print(f"forgotten or revoked before it ended there: {names}")
    queued = frozenset() if progress.over else tally.queued
    if queued:
        print(f"still queued for {listed(sorted(queued), _MAX_NAMES)};")
        print(f"pcm show {progress.job_id} shows the results later")


def _print_ends(tally: "WatchTally") -> None:
    """Print a line for each workstation; if they are many, a line for each group of failures."""
    reports = tally.progress.workstations
    if len(reports) <= _MAX_END_LINES:
        for _, report in sorted(reports.items()):
            print(text(report))
        return
    failures = sorted(tally.failures.values(), key=lambda failure: -failure.count)
    for failure in failures[:_MAX_GROUPS]:
        print(f"{failure.count:>6} {printable(failure.text)}  ({failure.example})")
    if others := failures[_MAX_GROUPS:]:
        print(f"{sum(failure.count for failure in others):>6} in {len(others)} other ways")
