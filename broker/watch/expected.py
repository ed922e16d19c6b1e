"""Whom a job that is watched is expected to reach: asked of the history meanwhile."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from broker.watch.tally import WatchTally

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LAST_WAIT = 10.0  # seconds for which the answer is waited for at the end
_COLLECTED = 5  # seconds until a collector has surely read what was just sent


@asynccontextmanager
async def expecting(tally: WatchTally) -> AsyncIterator[None]:
    """Let a tally know meanwhile which workstations are to receive its job."""
    asking = asyncio.create_task(_ask(tally))
    try:
        yield
        if tally.progress.caught_up.is_set():
            _, late = await asyncio.wait({asking}, timeout=_LAST_WAIT)
            if late:
                print("pcm: without the history: it is not up to date yet", file=sys.stderr)
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


async def _ask(tally: WatchTally) -> None:
    progress = tally.progress
    await progress.caught_up.wait()
    if progress.closed:  # it says itself whom it is for
        return

    from broker.amqp.connection import BrokerError
    from broker.history.schema import HistoryError
    from broker.settings import WrongSetting

    try:
        tally.promised = await _promised(progress.job_id)
    except (BrokerError, HistoryError, WrongSetting) as error:
        print(f"pcm: without the history: {error}", file=sys.stderr)


async def _promised(job_id: str) -> frozenset[str]:
    """Return the workstations for which the history has the job queued."""
    from broker.history.collector import refresh
    from broker.history.schema import open_history
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    engine = await asyncio.to_thread(open_history, settings.history_url)
    try:
        await refresh(settings, engine)
        for _ in range(_COLLECTED):
            names = await asyncio.to_thread(_queued, engine, job_id)
            if names is not None:
                return names
            await asyncio.sleep(1)
        return frozenset()
    finally:
        engine.dispose()


def _queued(engine: "Engine", job_id: str) -> frozenset[str] | None:
    """Return where a job is queued; None if it is not known yet."""
    from broker.history.projection.projection import QUEUED
    from broker.history.queries import accounts

    with accounts(engine) as history:
        if history.body(job_id) is None:
            return None
        return frozenset(pair.workstation for pair in history.pairs(job_id, (QUEUED,)))
