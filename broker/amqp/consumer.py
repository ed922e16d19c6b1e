"""Takes a channel's deliveries as their frames come.

The library's own way is two queues, a task and a copy for each message: more than the message
costs who reads many.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import aio_pika.abc
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from broker.amqp.connection import CALL_LIMIT
from broker.amqp.timeouts import timeout


class Delivery(NamedTuple):
    """A message as it came."""

    tag: int
    key: str
    properties: Basic.Properties
    body: bytes

    @property
    def headers(self) -> FieldTable:
        """Its headers."""
        return self.properties.headers or {}


class Deliveries:
    """Puts together what arrives on a channel that does nothing but consume."""

    def __init__(self, channel: AbstractChannel, take: Callable[[Delivery], None]) -> None:
        """Begin; `take` is called with each delivery, at once."""
        self._take = take
        self._method: Basic.Deliver | None = None
        self._header = ContentHeader()
        self._parts: list[bytes] = []
        self._left = 0
        # Whatever else comes, the library deals with.
        self._others = channel.frames.put
        channel.frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        method = self._method
        if isinstance(frame, Basic.Deliver):
            self._method = frame
            return
        if method is not None and isinstance(frame, ContentHeader):
            self._header, self._parts, self._left = frame, [], frame.body_size
        elif method is not None and isinstance(frame, ContentBody):
            self._parts.append(frame.value)
            self._left -= len(frame.value)
        else:
            await self._others(item)
            return
        if self._left <= 0:
            self._method = None
            properties, body = self._header.properties, b"".join(self._parts)
            self._take(
                Delivery(method.delivery_tag or 0, method.routing_key or "", properties, body)
            )


class Consumer(NamedTuple):
    """A consumer, and the channel that does nothing else."""

    channel: aio_pika.abc.AbstractChannel
    underlay: AbstractChannel
    tag: str

    async def end(self, limit: float) -> None:
        """Cancel the consumer and close its channel; after `limit` seconds, in the background.

        A close that is cut short is sent a second time by the library, and RabbitMQ closes the
        whole connection for that: so it is never cut short.
        """
        ending = asyncio.create_task(self._end())
        _ending.add(ending)
        ending.add_done_callback(_ended)
        await asyncio.wait({ending}, timeout=limit)

    async def _end(self) -> None:
        # Not by closing the channel alone: RabbitMQ 4.0 goes on listing the consumer.
        await self.underlay.basic_cancel(self.tag)
        await self.channel.close()


_ending: set[asyncio.Task[None]] = set()


def _ended(ending: asyncio.Task[None]) -> None:
    """Forget a close; one that failed was lost with its connection, which others notice."""
    _ending.discard(ending)
    if not ending.cancelled():
        ending.exception()


async def consume(
    connection: aio_pika.abc.AbstractConnection,
    queue: str,
    arrived: asyncio.Queue[Delivery | None],
    prefetch: int,
    arguments: FieldTable | None = None,
) -> Consumer:
    """Consume a queue on a channel of its own.

    Args:
        connection: to the broker.
        queue: its name.
        arrived: gets each delivery; None when the consumer is lost.
        prefetch: how many deliveries may be under way.
        arguments: of the consumer, such as a stream's offset.
    """
    async with timeout(CALL_LIMIT):
        channel = connection.channel()
        await channel.initialize()
        channel.close_callbacks.add(lambda *_: arrived.put_nowait(None))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda *_: arrived.put_nowait(None))
        await channel.set_qos(prefetch_count=prefetch)
        Deliveries(underlay, arrived.put_nowait)
        consumed = await underlay.basic_consume(queue, _pass_over, arguments=arguments)
    return Consumer(channel, underlay, consumed.consumer_tag or "")


async def _pass_over(_: DeliveredMessage) -> None:
    """Take none: all come by the frames."""
