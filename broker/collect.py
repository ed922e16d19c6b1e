"""`pcm collect` and `pcm history`: the history kept up to date, looked after, and read anew."""

import argparse
import json
import signal
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser, WrongUse
from broker.cli.session import finish, history_errors
from broker.cli.time_formats import iso, local

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.history.status import Status
    from broker.settings import HistorySettings


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    collect = commands.add_parser(
        "collect",
        help="keep the history up to date, as a service",
        description="Reads the reports into the history as they come, and sends what schedules"
        " have due, until it is told to stop (SIGTERM). Where none runs, each command that"
        " asks the history reads first what is new."
        " Of several, one works and the others stand by.",
    )
    collect.set_defaults(run=_collect)
    actions = commands.add_parser(
        "history",
        help="how far the history goes, and how to read it anew",
        description="The history is a database made of the stream pcm.reports, and remembers"
        " longer than the stream does.",
    ).add_subparsers(dest="what", required=True, metavar="status|rebuild")
    status = actions.add_parser(
        "status",
        help="how far it goes",
        description="Tells where the history is, what it holds, how far it has read the stream,"
        " what is missing, and whether a collector keeps it up to date. Reads nothing new.",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    rebuild = actions.add_parser(
        "rebuild",
        help="empty it, and read the stream again",
        description="Empties the history and reads the whole stream again. What the stream has"
        " dropped by age or size is lost: jobs, their reports and their output, rollouts, and"
        " workstations that were not seen since. Schedules in force are kept. Newer versions of"
        " pcm need no rebuild.",
    )
    rebuild.add_argument(
        "--yes",
        action="store_true",
        help="also where the stream does not go back as far as the history",
    )
    rebuild.set_defaults(run=_rebuild)


def _collect(_arguments: argparse.Namespace) -> int:
    import asyncio

    from broker import log
    from broker.history.schema import engine_of
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    with history_errors():
        engine = engine_of(settings.history_url)
        log.configure(program="collect")
        asyncio.run(_until_stopped(settings, engine))
    return DONE


async def _until_stopped(settings: "HistorySettings", engine: "Engine") -> None:
    import asyncio

    from broker.history.collector import Collector
    from broker.schedules.scheduler import Scheduler

    collector = Collector(settings, engine)
    scheduler = Scheduler(settings, engine, collected=True)

    async def both() -> None:
        await asyncio.gather(collector.run(), scheduler.run())

    work = asyncio.create_task(both())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()
    finally:
        await collector.leave()
        engine.dispose()


def _status(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from broker.history.schema import open_history
    from broker.history.status import status
    from broker.settings import HistorySettings, load

    with history_errors():
        engine = open_history(load(HistorySettings).history_url)
        found = status(engine)
        engine.dispose()
    if arguments.json:
        print(json.dumps(asdict(found) | {"oldest_job": iso(found.oldest_job)}, indent=2))
    else:
        _show(found)
    return DONE


def _show(found: "Status") -> None:
    from broker.history.source import Source

    source = Source(found.cluster, found.virtual_host)
    rows = {
        "database": found.database,
        "read of": str(source) if source.virtual_host else "no broker yet",
        "holds": f"{found.jobs:,} jobs, {found.pairs:,} times a job on a workstation,"
        f" {found.reports:,} reports, {found.workstations:,} workstations",
        "oldest job": local(found.oldest_job) or "none",
        "read up to": f"offset {found.next_offset:,} of the stream",
        "kept up by": found.collector or "no collector: each question reads first what is new",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    if found.forged:
        print(f"{'forged':<12}{found.forged:,} entries, which count nowhere: pcm dead list")
    for gap in found.gaps:
        print(f"{'missing':<12}{gap}")


def _rebuild(arguments: argparse.Namespace) -> int:
    from broker.history.schema import open_history
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    with history_errors():
        engine = open_history(settings.history_url)
        try:
            return finish(_anew(settings, engine, sure=arguments.yes))
        finally:
            engine.dispose()


async def _anew(settings: "HistorySettings", engine: "Engine", *, sure: bool) -> int:
    import asyncio

    from broker.client.dispatcher import Dispatcher
    from broker.history.collector import catch_up, first_offset
    from broker.history.reader import rebuild
    from broker.history.status import jobs_before, status
    from broker.schedules.queries import changed_since, in_force_from_before, next_offset
    from schemas import Schedule

    await catch_up(settings, engine)
    first = await first_offset(settings)
    lost = await asyncio.to_thread(jobs_before, engine, first)
    if lost and not sure:
        raise WrongUse(
            f"history rebuild: the stream begins at offset {first}: {lost} older jobs would be"
            " gone from the history, with their reports and output; say --yes if you mean it"
        )
    async with Dispatcher.connect(settings) as dispatcher:
        # A schedule is in force for longer than the stream keeps that it was added.
        kept = await asyncio.to_thread(in_force_from_before, engine, first)
        read = await asyncio.to_thread(next_offset, engine)
        for said in kept:
            await dispatcher.record_again(said.record, said.entry)
        # What somebody else said of one meanwhile stands before that: it is said again.
        await catch_up(settings, engine)
        schedules = [said.record for said in kept if isinstance(said.record, Schedule)]
        for said in await asyncio.to_thread(changed_since, engine, read, schedules):
            await dispatcher.record_again(said.record, said.entry)
    await asyncio.to_thread(rebuild, engine)
    await catch_up(settings, engine)
    found = await asyncio.to_thread(status, engine)
    print(f"read anew: {found.jobs:,} jobs, {found.reports:,} reports")
    return DONE
