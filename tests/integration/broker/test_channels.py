"""A close of a channel that is cut short ends its channel and nothing else.

RabbitMQ ends the whole connection if a channel is closed twice.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
from aio_pika.abc import AbstractConnection

from broker import BrokerSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.timeouts import timeout
from broker.stream import stream
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker

_CUT_AFTER = 0.2
_Close = Callable[[AbstractConnection, Proxy], Awaitable[None]]


@pytest.fixture
def proxy(node: Broker) -> Iterator[Proxy]:
    with Proxy(node.port) as made:
        yield made


@pytest.fixture
async def connection(node: Broker, proxy: Proxy) -> AsyncIterator[AbstractConnection]:
    url = proxy.by(node.url)
    async with connect(BrokerSettings(amqp_url=(url,)), "test") as made:
        await topology.ensure(made)
        yield made


async def _by_a_limit(connection: AbstractConnection, proxy: Proxy) -> None:
    async with timeout(_CUT_AFTER), connection.channel():
        proxy.hold_answers()


async def _by_a_limit_of_its_reader(connection: AbstractConnection, proxy: Proxy) -> None:
    async with timeout(_CUT_AFTER), stream.read_stream(connection, None):
        proxy.hold_answers()


async def _by_the_limit_of_a_call_on_it(connection: AbstractConnection, proxy: Proxy) -> None:
    async with timeout(_CUT_AFTER), connection.channel() as channel:
        proxy.hold_answers()
        await channel.declare_queue(topology.REPORTS, passive=True)


async def _by_a_cancellation(connection: AbstractConnection, proxy: Proxy) -> None:
    channel = connection.channel()
    await channel.initialize()
    proxy.hold_answers()
    closing = asyncio.ensure_future(channel.close())
    await asyncio.wait({closing}, timeout=_CUT_AFTER)
    closing.cancel()
    await closing


@pytest.mark.parametrize(
    "close",
    [
        _by_a_limit,
        _by_a_limit_of_its_reader,
        _by_the_limit_of_a_call_on_it,
        _by_a_cancellation,
    ],
)
async def test_a_close_that_is_cut_short_leaves_the_connection(
    connection: AbstractConnection, proxy: Proxy, close: _Close
) -> None:
    with suppress(asyncio.CancelledError), pytest.raises(TimeoutError):
        await close(connection, proxy)
    proxy.thaw()
    async with connection.channel() as channel:
        await channel.declare_queue(topology.REPORTS, passive=True)


async def test_a_close_that_the_broker_answers_late_leaves_the_connection(
    node: Broker, proxy: Proxy
) -> None:
    """The library closes the channel again after a heartbeat."""
    url = f"{proxy.by(node.url)}?heartbeat=1"
    async with connect(BrokerSettings(amqp_url=(url,)), "test") as connection:
        await topology.ensure(connection)
        channel = connection.channel()
        await channel.initialize()
        proxy.hold_answers()
        closing = asyncio.ensure_future(channel.close())
        await asyncio.wait({closing}, timeout=1.3)
        proxy.thaw()
        await closing
        async with connection.channel() as channel:
            await channel.declare_queue(topology.REPORTS, passive=True)
