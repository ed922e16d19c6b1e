"""Properties and headers that close a client's connection; all that may publish can set them."""

import asyncio
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiormq
import pytest
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp import commands

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.dead_letters.letters import DeadLetters
from broker.stream import stream
from schemas import State
from tests.support.admin import Admin, report
from tests.support.rabbitmq import Broker
from tests.support.workstation import Workstation


class Raw(commands.Basic.Properties):
    """Properties that are what they are."""

    def __init__(self, flags: int, data: bytes) -> None:
        super().__init__()
        self._data = struct.pack(">H", flags) + data

    def marshal(self) -> bytes:
        """Return them."""
        return self._data


def _headers(fields: bytes) -> tuple[int, bytes]:
    return 1 << 13, struct.pack(">I", len(fields)) + fields


def _nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"A" + struct.pack(">I", len(inner)) + inner
    return b"\x01a" + inner


_LATE = struct.pack(">Q", 2**62)
ODD = {
    "a time of the year 146140482": (1 << 6, _LATE),
    "a type that is not UTF-8": (1 << 5, b"\x02\xff\xfe"),
    "a content type that is not UTF-8": (1 << 15, b"\x02\xff\xfe"),
    "a header's time": _headers(b"\x01aT" + _LATE),
    "a header's name that is not UTF-8": _headers(b"\x02\xff\xfet\x01"),
    "a header's text that is not UTF-8": _headers(b"\x01aS\x00\x00\x00\x02\xff\xfe"),
    "a header of lists in lists": _headers(_nested(5000)),
}
odd = pytest.mark.parametrize("properties", ODD.values(), ids=ODD)


@pytest.fixture
async def raw(node: Broker) -> AsyncIterator[AbstractChannel]:
    """A channel that sends raw frames."""
    connection = await aiormq.connect(node.url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


@pytest.fixture
async def connection(settings: DispatcherSettings) -> AsyncIterator[AbstractConnection]:
    """A connection as all of ours are."""
    async with connect(settings, "test") as connected:
        await topology.ensure(connected)
        yield connected


@odd
async def test_a_reader_of_the_stream_gets_past_it(
    connection: AbstractConnection, raw: AbstractChannel, properties: tuple[int, bytes]
) -> None:
    start = datetime.now(UTC)
    publisher = await Publisher.open(connection)
    for body, odd_ones in ((b"odd", Raw(*properties)), (b"behind it", None)):
        await raw.basic_publish(
            body, exchange=topology.REPORTS, routing_key="failed.ws.service", properties=odd_ones
        )
    bodies = [entry.body async for entry in stream.read_all(connection, publisher, start)]
    assert bodies.index(b"odd") < bodies.index(b"behind it")


async def test_a_routing_key_that_is_no_utf_8(
    connection: AbstractConnection, raw: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime.now(UTC)
    publisher = await Publisher.open(connection)
    whole = commands.Basic.Publish.marshal
    with monkeypatch.context() as patched:
        patched.setattr(
            commands.Basic.Publish,
            "marshal",
            lambda frame: whole(frame).replace(b"failed.ws", b"failed.\xff\xfe"),
        )
        await raw.basic_publish(b"odd", exchange=topology.REPORTS, routing_key="failed.ws.service")
    bodies = [entry.body async for entry in stream.read_all(connection, publisher, start)]
    assert b"odd" in bodies


@odd
async def test_it_is_a_dead_letter_like_others(
    settings: DispatcherSettings, raw: AbstractChannel, properties: tuple[int, bytes]
) -> None:
    async with connect(settings, "test") as connected:
        await topology.ensure(connected)
    body = str(properties).encode()[-50:] + b"of the letter"
    await raw.basic_publish(
        body, exchange=topology.REPORTS, routing_key="dead.ws.service", properties=Raw(*properties)
    )
    async with DeadLetters.open(settings, keep_content=lambda _: True) as letters:
        (letter,) = (letter for letter in letters if letter.body == body)
        await letters.drop(letter)


@odd
async def test_an_agent_that_gets_it_takes_the_job(
    dispatcher: Dispatcher, ws: Workstation, raw: AbstractChannel, properties: tuple[int, bytes]
) -> None:
    """Q159201: nor is what comes behind it held up."""
    agent = ws.start("service")
    jobs = [ws.job("true", background=True) for _ in range(2)]
    await raw.basic_publish(
        jobs[0].body(),
        exchange=topology.JOBS,
        routing_key=topology.routing_keys(jobs[0])[0],
        properties=Raw(*properties),
    )
    await dispatcher.dispatch(jobs[1])
    await asyncio.to_thread(agent.wait_for, "job.ended", 2)
    assert {event["job"] for event in agent.events("job.ended")} == {job.id for job in jobs}


async def test_the_history_is_read_on(node: Broker, tmp_path: Path, raw: AbstractChannel) -> None:
    admin = Admin(node.url, tmp_path)
    await admin.append([])
    ended = report(Workstation("ws-odd", node.url, tmp_path).job("true"), "ws-odd", State.FAILED)
    for properties in ODD.values():
        await raw.basic_publish(
            ended.body(),
            exchange=topology.REPORTS,
            routing_key="failed.ws-odd.service",
            properties=Raw(*properties),
        )
    await admin.append([ended])
    done = await asyncio.to_thread(admin.run, "jobs", "--json")
    assert done.returncode == 0, done.stderr
    assert ended.job_id in done.stdout
