"""How a job is followed through the stream, to its end and no longer."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Unreachable
from broker.amqp.timeouts import timeout
from broker.client.progress import Progress
from broker.client.reconnect import DispatcherLink
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Job
from schemas.errors import PcmError
from schemas.job import id_time

_CLOCK_SKEW = timedelta(minutes=10)
_SILENCE = 60.0  # seconds


class UnknownJob(PcmError):
    """No job with this id was sent, or the broker no longer keeps its record."""


def since(job_id: str) -> datetime | None:
    """Return from when on a job's records can be in the stream; None: from its beginning."""
    made = id_time(job_id)
    # What was made in the future was made by a clock that is ahead, whenever that was.
    return made - _CLOCK_SKEW if made and made <= datetime.now(UTC) else None


async def find(link: DispatcherLink, job_id: str) -> Job:
    """Return a job from its record.

    Raises:
        UnknownJob: there is none.
    """
    async with aclosing(stream.read_all(link.connection, link.publisher, since(job_id))) as entries:
        async for entry in entries:
            if entry.kind == "job":
                for record in entry.of_job(job_id):
                    if isinstance(record, Job):
                        return record
    raise UnknownJob(f"{job_id}: no such job was sent")


async def until_settled(
    entries: AsyncIterator[StreamEntry],
    progress: Progress,
    mark: str,
    look: Callable[[], Awaitable[str]],
    settle: float,
) -> AsyncIterator[StreamEntry]:
    """Pass entries on until the job has ended and no report of it came for a while.

    Where it is silent for long, another mark is put to the stream's end: that it comes shows
    that there is nothing to be told, rather than nobody who tells it.
    """
    caught_up = False
    news = (caught_up, progress.reports)
    quiet_since = heard = time.monotonic()
    while True:
        left = min(_SILENCE, progress.until_over + settle)
        if not caught_up:  # what was there when we came: none of it is waited for
            left = CALL_LIMIT
        elif progress.ended:
            left = quiet_since + settle - time.monotonic()
            if left <= 0 or (progress.closed and not progress.over):
                return
        try:
            async with timeout(left):
                entry = await anext(entries)
        except TimeoutError:
            if not caught_up:
                raise Unreachable(f"reading {topology.REPORTS}: nothing more comes") from None
            if time.monotonic() - heard >= _SILENCE:
                mark, caught_up = await look(), False
            continue
        heard = time.monotonic()
        yield entry
        caught_up = caught_up or entry.is_mark(mark)
        if caught_up and progress.unknown:
            raise UnknownJob(f"{progress.job_id}: no such job was sent")
        if (caught_up, progress.reports) != news:
            news = (caught_up, progress.reports)
            quiet_since = heard
