"""`pcm collect` and `pcm history`: update, inspect and rebuild the history."""

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
        description="Reads reports into the history as they arrive, and sends the due jobs of"
        " schedules, until SIGTERM. Without a collector, each command that queries the history"
        " reads the new reports first. Of several collectors one is active; the others are on"
        " standby.",
    )
    collect.set_defaults(run=_collect)
    actions = commands.add_parser(
        "history",
        help="show the state of the history, or rebuild it",
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
    import asyncio

    from broker import log
    from broker.history.schema import engine_of
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    with history_errors():
        engine = engine_of(settings.history_url)
        log.configure(program="collect")
        asyncio.run(_run_until_stopped(settings, engine))
    return DONE


async def _run_until_stopped(settings: "HistorySettings", engine: "Engine") -> None:
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
        await collector.release_lease()
        engine.dispose()


def _status(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from broker.history.schema import open_history
    from broker.history.status import status
    from broker.settings import HistorySettings, load

    with history_errors():
        engine = open_history(load(HistorySettings).history_url)
        state = status(engine)
        engine.dispose()
    if arguments.json:
        print(json.dumps(asdict(state) | {"oldest_job": iso(state.oldest_job)}, indent=2))
    else:
        _print(state)
    return DONE


def _print(state: "Status") -> None:
    from broker.history.source import Source

    source = Source(state.cluster, state.virtual_host)
    rows = {
        "database": state.database,
        "read from": str(source) if source.virtual_host else "no broker yet",
        "holds": f"{state.jobs:,} jobs, {state.pairs:,} outcomes, {state.reports:,} reports,"
        f" {state.workstations:,} workstations",
        "oldest job": local(state.oldest_job) or "none",
        "read up to": f"offset {state.next_offset:,} of the stream",
        "collector": state.collector or "none: each query reads new reports first",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    if state.forged:
        print(f"{'forged':<12}{state.forged:,} entries, not counted: pcm dead list")
    for gap in state.gaps:
        print(f"{'missing':<12}{gap}")


def _rebuild(arguments: argparse.Namespace) -> int:
    from broker.history.schema import open_history
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    with history_errors():
        engine = open_history(settings.history_url)
        try:
            return finish(_rebuild_history(settings, engine, confirmed=arguments.yes))
        finally:
            engine.dispose()


async def _rebuild_history(
    settings: "HistorySettings", engine: "Engine", *, confirmed: bool
) -> int:
    import asyncio

    from broker.client.dispatcher import Dispatcher
    from broker.history.collector import catch_up, first_offset
    from broker.history.reader import rebuild
    from broker.history.status import jobs_before, status
    from broker.schedules.queries import in_force_from_before, next_offset, said_since
    from schemas import Schedule

    await catch_up(settings, engine)
    first = await first_offset(settings)
    lost = await asyncio.to_thread(jobs_before, engine, first)
    if lost and not confirmed:
        raise WrongUse(
            f"history rebuild: the stream starts at offset {first}: {lost} older jobs would be"
            " lost, with their reports and output; use --yes to rebuild anyway"
        )
    async with Dispatcher.connect(settings) as dispatcher:
        # A schedule outlives its entry in the stream: append it again.
        kept = await asyncio.to_thread(in_force_from_before, engine, first)
        read = await asyncio.to_thread(next_offset, engine)
        for said in kept:
            await dispatcher.record_again(said.record, said.entry)
        # A change made in between is now before the repeated entry: append it again, too.
        await catch_up(settings, engine)
        schedules = [said.record for said in kept if isinstance(said.record, Schedule)]
        for said in await asyncio.to_thread(said_since, engine, read, schedules):
            await dispatcher.record_again(said.record, said.entry)
    await asyncio.to_thread(rebuild, engine)
    await catch_up(settings, engine)
    state = await asyncio.to_thread(status, engine)
    print(f"rebuilt: {state.jobs:,} jobs, {state.reports:,} reports")
    return DONE
