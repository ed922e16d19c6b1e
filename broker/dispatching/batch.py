"""Many jobs sent at once: so many on the way, their outcomes in the order of the jobs."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
)
from typing import Any, NamedTuple

from schemas import Job

IN_FLIGHT = 1000


class Sent(NamedTuple):
    """What became of a job that was to be sent: the broker has stored it, or why not."""

    job: Job
    error: Exception | None


Sender = Callable[[Job], Coroutine[Any, Any, Sent]]


def check_in_flight(in_flight: int) -> None:
    """Refuse a number of jobs on the way with which none would ever be sent."""
    if in_flight < 1:
        raise ValueError(f"in_flight: {in_flight}: at least 1 has to be on the way")


async def send_all(
    send: Sender, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int
) -> AsyncGenerator[Sent, None]:
    """Send jobs, so many at once, and yield what became of each in their order.

    Where taking the next job fails, what was taken before is sent and yielded first.
    """
    check_in_flight(in_flight)
    places = asyncio.Semaphore(in_flight)
    tasks: asyncio.Queue[asyncio.Task[Sent] | None] = asyncio.Queue()
    begun: set[asyncio.Task[Sent]] = set()

    async def begin() -> None:
        try:
            async for job in _each(jobs, places):
                task = asyncio.create_task(send(job))
                begun.add(task)
                tasks.put_nowait(task)
        finally:
            tasks.put_nowait(None)

    beginning = asyncio.create_task(begin())
    try:
        while (task := await tasks.get()) is not None:
            sent = await task
            begun.discard(task)
            places.release()
            yield sent
        await beginning
    finally:
        for left in (beginning, *begun):
            left.cancel()
        await asyncio.gather(beginning, *begun, return_exceptions=True)


async def _each(
    jobs: Iterable[Job] | AsyncIterable[Job], places: asyncio.Semaphore
) -> AsyncIterator[Job]:
    """Yield each job once there is a place for it; none is taken before."""
    await places.acquire()
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
            await places.acquire()
    else:
        for job in jobs:
            yield job
            await places.acquire()
