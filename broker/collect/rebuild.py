"""Rebuild the history from the stream."""

import asyncio

from sqlalchemy import Engine

from broker.client.dispatcher import Dispatcher
from broker.history.collector import catch_up, first_offset
from broker.history.engine import HistoryError, open_history
from broker.history.queries.status import HistoryStatus, jobs_before, status
from broker.history.reader import rebuild
from broker.schedules.queries import changed_since, in_force_from_before, next_offset
from broker.settings import HistorySettings, load
from schemas import Schedule


class JobsWouldBeLost(HistoryError):
    """A rebuild would lose jobs that the stream no longer has; nothing was changed."""


async def rebuild_history(
    settings: HistorySettings | None = None, *, lose_jobs: bool = False
) -> HistoryStatus:
    """Empty the history, and read the whole stream again; keep active schedules.

    Args:
        settings: the settings; default: from the environment.
        lose_jobs: rebuild even if the stream no longer has all jobs.

    Returns:
        The status of the new history.

    Raises:
        JobsWouldBeLost: the stream no longer has all jobs, and `lose_jobs` is not set.
        HistoryError: the database cannot be used, or was read from another broker.
        BrokerError: the broker is unreachable, or refuses.
    """
    settings = settings or load(HistorySettings)
    engine = await asyncio.to_thread(open_history, settings.history_url)
    try:
        await catch_up(settings, engine)
        first = await first_offset(settings)
        lost = await asyncio.to_thread(jobs_before, engine, first)
        if lost and not lose_jobs:
            raise JobsWouldBeLost(
                f"the stream starts at offset {first}: {lost} older jobs would be lost, with their"
                " reports and output"
            )
        await _repeat_schedules(settings, engine, first)
        await asyncio.to_thread(rebuild, engine)
        await catch_up(settings, engine)
        return await asyncio.to_thread(status, engine)
    finally:
        engine.dispose()


async def _repeat_schedules(settings: HistorySettings, engine: Engine, first: int) -> None:
    """Append the active schedules again whose entries the stream has dropped."""
    async with Dispatcher.connect(settings) as dispatcher:
        kept = await asyncio.to_thread(in_force_from_before, engine, first)
        read = await asyncio.to_thread(next_offset, engine)
        for each in kept:
            await dispatcher.record_again(each.record, each.entry)
        # A change made in between is now before the repeated entry: append it again, too.
        await catch_up(settings, engine)
        schedules = [each.record for each in kept if isinstance(each.record, Schedule)]
        for each in await asyncio.to_thread(changed_since, engine, read, schedules):
            await dispatcher.record_again(each.record, each.entry)
