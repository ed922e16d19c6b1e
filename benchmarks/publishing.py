"""Measure a script that publishes: distinct jobs a second, each stored and confirmed.

    make bench

All sides publish the same bytes, persistent and confirmed, into one workstation's quorum queue. The
queue is new for each side and has no consumer. Its messages are counted afterwards.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from yarl import URL

from benchmarks.compiled import compiled, rate
from benchmarks.measured import Comparison, Series, in_turns
from benchmarks.peers.started import Peer, publish, there
from broker import Dispatcher, DispatcherSettings, SyncDispatcher
from broker.amqp import topology
from broker.amqp.connection import connect
from schemas import Command, Job, workstation
from tests.support.rabbitmq import Node

COUNT = int(os.environ.get("COUNT", "10000"))
FEWER = COUNT // 5
"""The number for sides that wait for each confirm before the next message."""
_WARM_UP = 8
_NAME = "bench"
_QUEUE = topology.queue_name(topology.AgentKind.SERVICE, _NAME)

_SAME = "the same bytes, persistent, confirmed, into the same quorum queue"
_PIPELINED = f"{_SAME}; 1,000 in flight"
_DEFAULT_EXCHANGE = "by the default exchange"
_WRAPPED = "within an envelope of its own"

PIPELINED = (
    Peer("bare aiormq", "with_aiormq", _PIPELINED, ("aiormq", "pamqp")),
    Peer(
        "bare aiormq, not waiting for the socket",
        "with_aiormq",
        f"{_PIPELINED}; wait=False: a confirm is waited for, that its message is written is not",
        ("aiormq", "pamqp"),
        environment={"PEER_NO_WAIT": "1"},
    ),
    Peer("aio-pika", "with_aio_pika", _PIPELINED, ("aio-pika", "aiormq")),
    Peer(
        "aio-pika on uvloop",
        "with_aio_pika",
        _PIPELINED,
        ("aio-pika", "aiormq", "uvloop"),
        uvloop=True,
    ),
    Peer("FastStream", "with_faststream", _PIPELINED, ("faststream", "aio-pika")),
    Peer("taskiq", "with_taskiq", f"{_PIPELINED}; {_WRAPPED}", ("taskiq", "taskiq-aio-pika")),
)
ONE_BY_ONE = (
    Peer(
        "Celery",
        "with_celery",
        f"{_SAME} (confirm_publish); waits for each; {_WRAPPED}",
        ("celery", "kombu", "amqp"),
    ),
    Peer(
        "Dramatiq",
        "with_dramatiq",
        f"{_SAME} (confirm_delivery), {_DEFAULT_EXCHANGE}; waits for each; {_WRAPPED}",
        ("dramatiq", "pika"),
    ),
)


def jobs(count: int) -> list[Job]:
    """Return distinct jobs."""
    command = Command(argv=("true",), background=True)
    return [Job(command=command, targets=(workstation(_NAME),)) for _ in range(count)]


async def make_queue(settings: DispatcherSettings) -> None:
    """Declare the workstation's queue as its agent does."""
    queue = topology.agent_queue(
        topology.AgentKind.SERVICE, _NAME, "", (), "quorum", 24 * 3600 * 1000
    )
    async with connect(settings, "bench") as link, link.channel() as channel:
        await topology.ensure(link)
        await topology.declare_queue(channel, queue)


async def remove_queue(settings: DispatcherSettings) -> int:
    """Delete the queue; return its number of messages."""
    async with connect(settings, "bench") as link, link.channel() as channel:
        queue = await channel.get_queue(_QUEUE)
        deleted = await queue.delete(if_unused=False, if_empty=False)
        return deleted.message_count or 0


def into_queue(settings: DispatcherSettings, way: Callable[[], float], count: int) -> float:
    """Publish into a new queue; return the messages a second, if the queue has all."""
    asyncio.run(make_queue(settings))
    found = -1
    try:
        figure = way()
    finally:
        found = asyncio.run(remove_queue(settings))
    if found < count:
        raise RuntimeError(f"{found} messages of {count} are in the queue")
    return figure


def one_by_one(settings: DispatcherSettings) -> float:
    """Return jobs a second, each sent after the confirm of the previous one."""

    async def send() -> float:
        few, asked = jobs(_WARM_UP), jobs(FEWER)
        async with Dispatcher.connect(settings) as dispatcher:
            for one in few:
                await dispatcher.dispatch(one)
            began = perf_counter()
            for one in asked:
                await dispatcher.dispatch(one)
            return FEWER / (perf_counter() - began)

    return asyncio.run(send())


def at_once(settings: DispatcherSettings) -> float:
    """Return jobs a second of `dispatch_all`."""

    async def send() -> float:
        few, asked = jobs(_WARM_UP), jobs(COUNT)
        async with Dispatcher.connect(settings) as dispatcher:
            async for _ in dispatcher.dispatch_all(few):
                pass
            began = perf_counter()
            async for _, error in dispatcher.dispatch_all(asked):
                if error is not None:
                    raise error
            return COUNT / (perf_counter() - began)

    return asyncio.run(send())


def from_a_thread(settings: DispatcherSettings) -> float:
    """Return jobs a second of `SyncDispatcher.dispatch_all`."""
    few, asked = jobs(_WARM_UP), jobs(COUNT)
    with SyncDispatcher(settings) as dispatcher:
        list(dispatcher.dispatch_all(few))
        began = perf_counter()
        for _, error in dispatcher.dispatch_all(asked):
            if error is not None:
                raise error
        return COUNT / (perf_counter() - began)


@contextmanager
def file_of(bodies: list[bytes]) -> Iterator[Path]:
    """Write messages to a file, one a line; yield its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bodies"
        path.write_bytes(b"\n".join(bodies))
        yield path


def main() -> None:
    """Measure all sides alternately, and store the comparison."""
    twice = "each job is 2 confirmed messages: its record in the stream, then the job in the queue"
    shared = (
        "each job is a confirmed message in the queue; its record, confirmed before it, stands in"
        " a message of the stream that up to 50 jobs share; both persistent; stock loop"
    )
    ways: dict[str, Callable[[], float]] = {}
    about = {
        "ours, dispatch_all": f"{shared}; 1,000 jobs in flight",
        "ours, SyncDispatcher.dispatch_all": "the same from a script without asyncio",
        "ours, one by one": f"{twice}; each sent when the one before is confirmed",
    }
    asked = jobs(COUNT)
    bodies = [one.body() for one in asked]
    key = topology.routing_key(asked[0], asked[0].targets[0])
    variables = {"PEER_EXCHANGE": topology.JOBS, "PEER_QUEUE": _QUEUE, "PEER_KEY": key}
    with Node() as node, tempfile.TemporaryDirectory() as name, file_of(bodies) as file:
        settings = DispatcherSettings(amqp_url=(node.url,))
        into = partial(into_queue, settings)
        ways["ours, dispatch_all"] = partial(into, partial(at_once, settings), COUNT)
        ways["ours, SyncDispatcher.dispatch_all"] = partial(
            into, partial(from_a_thread, settings), COUNT
        )
        ways["ours, one by one"] = partial(into, partial(one_by_one, settings), FEWER)
        for peer in there((*PIPELINED, *ONE_BY_ONE)):
            few = bodies[:FEWER] if peer in ONE_BY_ONE else bodies
            about[peer.name] = peer.described
            ways[peer.name] = partial(
                into, partial(publish, peer, node.url, variables, few), len(few)
            )
        if program := compiled("publishing", Path(name), "-lrabbitmq"):
            limit = "limit: librabbitmq, in C"
            about[limit] = _PIPELINED
            words = (str(URL(node.url).port), topology.JOBS, key, str(file))
            ways[limit] = partial(into, partial(rate, program, *words), COUNT)
        figures = in_turns(ways)
    Comparison(
        "publishing",
        f"One script publishes distinct jobs of {len(bodies[0])} bytes, with confirms",
        "jobs a second",
        [Series(side, found, about[side]) for side, found in figures.items()],
        baseline="ours, dispatch_all",
    ).keep()


if __name__ == "__main__":
    main()
