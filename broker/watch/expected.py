"""Read from the history for which workstations a watched job is queued."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from broker.amqp.connection import BrokerError
from broker.settings import HistorySettings, WrongSetting, load
from broker.watch.background import in_background
from broker.watch.tally import WatchTally

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LAST_WAIT = 10.0  # seconds to wait for the history at the end
_COLLECT_TRIES = 5  # seconds, within which a collector reads a job that was just sent


@asynccontextmanager
async def read_queued(tally: WatchTally) -> AsyncIterator[None]:
    """Read in the background for which workstations a tally's job is queued."""
    async with in_background(_read(tally)) as reading:
        yield
        if tally.progress.caught_up.is_set():
            _, late = await asyncio.wait({reading}, timeout=_LAST_WAIT)
            if late:
                print("pcm: without the history: it is not up to date yet", file=sys.stderr)


async def _read(tally: WatchTally) -> None:
    progress = tally.progress
    await progress.caught_up.wait()
    if progress.closed:  # the job names its workstations
        return

    from broker.history.engine import HistoryError

    try:
        tally.queued_in_history = await _queued(progress.job_id)
    except (BrokerError, HistoryError, WrongSetting) as error:
        print(f"pcm: without the history: {error}", file=sys.stderr)


async def _queued(job_id: str) -> frozenset[str]:
    """Return the workstations where the job is queued, according to the up-to-date history."""
    from broker.history.collector import refresh
    from broker.history.engine import open_history

    settings = load(HistorySettings)
    engine = await asyncio.to_thread(open_history, settings.history_url)
    try:
        await refresh(settings, engine)
        for _ in range(_COLLECT_TRIES):
            names = await asyncio.to_thread(_query_queued, engine, job_id)
            if names is not None:
                return names
            await asyncio.sleep(1)
        return frozenset()
    finally:
        engine.dispose()


def _query_queued(engine: "Engine", job_id: str) -> frozenset[str] | None:
    """Return where a job is queued; None if the history does not have the job yet."""
    from broker.history.projection.projection import QUEUED
    from broker.history.queries.jobs import query_jobs

    with query_jobs(engine) as queries:
        if queries.body(job_id) is None:
            return None
        return frozenset(outcome.workstation for outcome in queries.outcomes(job_id, (QUEUED,)))
