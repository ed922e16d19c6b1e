"""Measure a dispatcher: jobs a second, one by one, and many at once.

    make bench

Each job is recorded, then stored in a workstation's quorum queue, and both confirmed, either way.
All in one run, in turns; nobody consumes, so that only publishing is measured.
"""

import asyncio
import platform
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from broker import Dispatcher, DispatcherSettings, SyncDispatcher, topology
from broker.connection import connect
from schemas import Command, Job, workstation
from tests.rabbitmq import Node

ONE_BY_ONE = 1000
AT_ONCE = 10_000
ROUNDS = 3
NAME = "bench"


def jobs(count: int) -> list[Job]:
    """Return so many different jobs."""
    command = Command(argv=("true",), background=True)
    return [Job(command=command, targets=(workstation(NAME),)) for _ in range(count)]


@asynccontextmanager
async def empty_queue(settings: DispatcherSettings) -> AsyncIterator[None]:
    """Have a workstation's queue, and nothing of it afterwards."""
    async with connect(settings, "bench") as link, link.channel() as channel:
        await topology.ensure(link)
        queue = topology.agent_queue(
            topology.AgentKind.SERVICE, NAME, "", (), "quorum", 24 * 3600 * 1000
        )
        declared = await topology.declare_queue(channel, queue)
        yield
        await declared.delete(if_unused=False, if_empty=False)


async def one_by_one(settings: DispatcherSettings) -> float:
    """Return jobs a second, each sent when the one before is confirmed."""
    asked = jobs(ONE_BY_ONE)
    async with Dispatcher.connect(settings) as dispatcher:
        began = time.perf_counter()
        for job in asked:
            await dispatcher.dispatch(job)
        return ONE_BY_ONE / (time.perf_counter() - began)


async def at_once(settings: DispatcherSettings) -> float:
    """Return jobs a second of `dispatch_all`."""
    asked = jobs(AT_ONCE)
    async with Dispatcher.connect(settings) as dispatcher:
        began = time.perf_counter()
        sent = [job async for job, error in dispatcher.dispatch_all(asked) if error is None]
        took = time.perf_counter() - began
    if len(sent) != AT_ONCE:
        raise RuntimeError("some jobs were not sent")
    return AT_ONCE / took


async def from_a_thread(settings: DispatcherSettings) -> float:
    """Return jobs a second of `SyncDispatcher.dispatch_all`."""

    def sending() -> float:
        asked = jobs(AT_ONCE)
        with SyncDispatcher(settings) as dispatcher:
            began = time.perf_counter()
            sent = [job for job, error in dispatcher.dispatch_all(asked) if error is None]
            took = time.perf_counter() - began
        if len(sent) != AT_ONCE:
            raise RuntimeError("some jobs were not sent")
        return AT_ONCE / took

    return await asyncio.to_thread(sending)


WAYS: dict[str, Callable[[DispatcherSettings], Awaitable[float]]] = {
    "dispatch, one by one": one_by_one,
    "dispatch_all": at_once,
    "SyncDispatcher.dispatch_all": from_a_thread,
}


async def measure(settings: DispatcherSettings) -> None:
    """Measure each way in turns, and print."""
    figures: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            async with empty_queue(settings):
                figures[name].append(await way(settings))
    for name, found in figures.items():
        middle = statistics.median(found)
        print(f"{name:<44}{middle:>9.0f} jobs/s      ({min(found):.0f} to {max(found):.0f})")


def main() -> None:
    """Start a broker, measure and print."""
    print(f"Python {platform.python_version()}, medians of {ROUNDS}")
    with Node() as node:
        asyncio.run(measure(DispatcherSettings(amqp_url=(node.url,))))


if __name__ == "__main__":
    main()
