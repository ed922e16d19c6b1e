"""Follow a job through the stream until it has ended."""

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
from schemas.orders.job import id_time

_CLOCK_SKEW = timedelta(minutes=10)
_MARKER_INTERVAL = 60.0  # seconds


class UnknownJob(PcmError):
    """No job with this id was sent, or the stream no longer has its record."""


def earliest_record_time(job_id: str) -> datetime | None:
    """Return the earliest time of a job's records in the stream; None: read from its start."""
    created = id_time(job_id)
    # A time in the future is of a wrong clock, and says nothing.
    return created - _CLOCK_SKEW if created and created <= datetime.now(UTC) else None


async def find_job(link: DispatcherLink, job_id: str) -> Job:
    """Return a job from its record in the stream.

    Raises:
        UnknownJob: there is no such record.
    """
    start = earliest_record_time(job_id)
    async with aclosing(stream.read_all(link.connection, link.publisher, start)) as entries:
        async for entry in entries:
            if entry.kind == "job":
                for record in entry.of_job(job_id):
                    if isinstance(record, Job):
                        return record
    raise UnknownJob(f"{job_id}: no such job was sent")


async def until_settled(
    entries: AsyncIterator[StreamEntry],
    progress: Progress,
    marker: str,
    append_marker: Callable[[], Awaitable[str]],
    settle: float,
) -> AsyncIterator[StreamEntry]:
    """Yield entries until the job has ended, and no report of it has arrived for `settle` seconds.

    After 60 s without entries, write a new end marker. Receiving it proves that the consumer is
    alive.
    """
    caught_up = False
    last_change = (caught_up, progress.reports)
    quiet_since = received_at = time.monotonic()
    while True:
        limit = min(_MARKER_INTERVAL, progress.seconds_until_over + settle)
        if not caught_up:  # these entries exist already
            limit = CALL_LIMIT
        elif progress.ended:
            limit = quiet_since + settle - time.monotonic()
            if limit <= 0 or (progress.closed and not progress.over):
                return
        try:
            async with timeout(limit):
                entry = await anext(entries)
        except TimeoutError:
            if not caught_up:
                raise Unreachable(f"reading {topology.REPORTS}: no more entries") from None
            if time.monotonic() - received_at >= _MARKER_INTERVAL:
                marker, caught_up = await append_marker(), False
            continue
        received_at = time.monotonic()
        yield entry
        caught_up = caught_up or entry.is_end_marker(marker)
        if caught_up and progress.unknown:
            raise UnknownJob(f"{progress.job_id}: no such job was sent")
        if (caught_up, progress.reports) != last_change:
            last_change = (caught_up, progress.reports)
            quiet_since = received_at
