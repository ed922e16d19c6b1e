"""Say for which workstations a watched job waits."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.watch.background import in_background
from broker.watch.tally import WatchTally
from schemas.text import listed

_DELAY = 3.0  # seconds, within which a workstation that is on has reported
_MAX_NAMES = 10


@asynccontextmanager
async def announce_missing(tally: WatchTally) -> AsyncIterator[None]:
    """Say once on stderr which workstations have not reported a job that is waited for."""
    async with in_background(_announce(tally)):
        yield


async def _announce(tally: WatchTally) -> None:
    progress = tally.progress
    await progress.caught_up.wait()
    await asyncio.sleep(_DELAY)
    if text := describe_unreported(tally):
        print(f"pcm: waiting for {text}; pcm workstations shows who is there", file=sys.stderr)


def describe_unreported(tally: WatchTally) -> str:
    """Return which workstations have not reported a job that is waited for; empty if none."""
    progress = tally.progress
    if progress.over or progress.ended:
        return ""
    if progress.unreported:
        return f"{listed(sorted(progress.unreported), _MAX_NAMES)}, without a report yet"
    return "" if progress.workstations else "the first workstation that receives it"
