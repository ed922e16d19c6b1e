"""Send many jobs concurrently; yield their outcomes in the order of the jobs."""

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
_BATCH = 50  # jobs; enough to share the costs, few enough for a short wait


class Sent(NamedTuple):
    """The outcome of sending a job: stored by the broker, or the error."""

    job: Job
    error: Exception | None


Sender = Callable[[Sequence[Job]], Coroutine[Any, Any, list[Sent]]]


def check_in_flight(in_flight: int) -> None:
    """Raise ValueError if no job could ever be sent."""
    if in_flight < 1:
        raise ValueError(f"in_flight: {in_flight}: must be at least 1")


async def send_all(
    send: Sender, jobs: Iterable[Job] | AsyncIterable[Job], in_flight: int
) -> AsyncGenerator[Sent, None]:
    """Send jobs, at most `in_flight` at a time; yield the outcome of each in order.

    Jobs that are available together are sent in one batch; no job waits for the next one. If the
    iterable raises an error, the jobs before it are sent and yielded first.
    """
    check_in_flight(in_flight)
    slots = asyncio.Semaphore(in_flight)
    batches: asyncio.Queue[asyncio.Task[list[Sent]] | None] = asyncio.Queue()
    running: set[asyncio.Task[list[Sent]]] = set()
    taken: list[Job] = []

    def start_batch() -> None:
        if taken:
            batch = asyncio.create_task(send(tuple(taken)))
            taken.clear()
            running.add(batch)
            batches.put_nowait(batch)

    async def take() -> None:
        loop = asyncio.get_running_loop()
        try:
            async for job in _limited(jobs, slots):
                if not taken:
                    loop.call_soon(start_batch)
                taken.append(job)
                if len(taken) == _BATCH:
                    start_batch()
        finally:
            start_batch()
            batches.put_nowait(None)

    taking = asyncio.create_task(take())
    try:
        while (batch := await batches.get()) is not None:
            for sent in await batch:
                slots.release()
                yield sent
            running.discard(batch)
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        for batch in running:
            batch.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _limited(
    jobs: Iterable[Job] | AsyncIterable[Job], slots: asyncio.Semaphore
) -> AsyncIterator[Job]:
    """Take and yield each job when a slot is free."""
    await slots.acquire()
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
            await slots.acquire()
    else:
        for job in jobs:
            yield job
            await slots.acquire()
