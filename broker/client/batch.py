"""Many jobs sent at once: so many on the way, their outcomes in the order of the jobs."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from typing import Any, NamedTuple

from schemas import Job

IN_FLIGHT = 1000
_TOGETHER = 50  # jobs of one turn: what they share is little of each, and none waits for many


class Sent(NamedTuple):
    """What became of a job that was to be sent: the broker has stored it, or why not."""

    job: Job
    error: Exception | None


Sender = Callable[[Sequence[Job]], Coroutine[Any, Any, list[Sent]]]


def check_in_flight(in_flight: int) -> None:
    """Refuse a number of jobs on the way with which none would ever be sent."""
    if in_flight < 1:
        raise ValueError(f"in_flight: {in_flight}: at least 1 has to be on the way")


async def send_all(
    send: Sender, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int
) -> AsyncGenerator[Sent, None]:
    """Send jobs, so many at once, and yield what became of each in their order.

    Those that are there at the same time are sent together; none waits for the next to come.
    Where taking the next job fails, what was taken before is sent and yielded first.
    """
    check_in_flight(in_flight)
    places = asyncio.Semaphore(in_flight)
    batches: asyncio.Queue[asyncio.Task[list[Sent]] | None] = asyncio.Queue()
    begun: set[asyncio.Task[list[Sent]]] = set()
    taken: list[Job] = []

    def begin() -> None:
        if taken:
            batch = asyncio.create_task(send(tuple(taken)))
            taken.clear()
            begun.add(batch)
            batches.put_nowait(batch)

    async def take() -> None:
        loop = asyncio.get_running_loop()
        try:
            async for job in _each(jobs, places):
                if not taken:
                    loop.call_soon(begin)
                taken.append(job)
                if len(taken) == _TOGETHER:
                    begin()
        finally:
            begin()
            batches.put_nowait(None)

    taking = asyncio.create_task(take())
    try:
        while (batch := await batches.get()) is not None:
            for sent in await batch:
                places.release()
                yield sent
            begun.discard(batch)
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        for batch in begun:
            batch.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


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
