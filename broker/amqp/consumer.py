"""Consume a queue, and assemble the deliveries from their frames.

The library needs two queues, a task and a copy for each message, which costs more than the message
itself.
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

from broker.amqp.channel import finish
from broker.amqp.connection import CALL_LIMIT
from broker.amqp.timeouts import timeout


class Delivery(NamedTuple):
    """A delivered message."""

    tag: int
    key: str
    properties: Basic.Properties
    body: bytes

    @property
    def headers(self) -> FieldTable:
        """The message's headers."""
        return self.properties.headers or {}


class DeliveryAssembler:
    """Assemble the deliveries of a channel that only consumes."""

    def __init__(self, channel: AbstractChannel, on_delivery: Callable[[Delivery], None]) -> None:
        """Start; `on_delivery` is called with each delivery as soon as it is complete."""
        self._on_delivery = on_delivery
        self._method: Basic.Deliver | None = None
        self._header = ContentHeader()
        self._parts: list[bytes] = []
        self._missing = 0
        # All other frames go to the library.
        self._put_other = channel.frames.put
        channel.frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        method = self._method
        if isinstance(frame, Basic.Deliver):
            self._method = frame
            return
        if method is not None and isinstance(frame, ContentHeader):
            self._header, self._parts, self._missing = frame, [], frame.body_size
        elif method is not None and isinstance(frame, ContentBody):
            self._parts.append(frame.value)
            self._missing -= len(frame.value)
        else:
            await self._put_other(item)
            return
        if self._missing <= 0:
            self._method = None
            properties, body = self._header.properties, b"".join(self._parts)
            self._on_delivery(
                Delivery(method.delivery_tag or 0, method.routing_key or "", properties, body)
            )


class Consumer(NamedTuple):
    """A consumer, and its channel."""

    channel: aio_pika.abc.AbstractChannel
    underlay: AbstractChannel
    tag: str

    async def end(self, limit: float) -> None:
        """Cancel the consumer and close its channel; after `limit` seconds, in the background."""
        await finish(self._end(), limit)

    async def _end(self) -> None:
        # After a close of the channel alone RabbitMQ 4.0 still lists the consumer.
        await self.underlay.basic_cancel(self.tag)
        await self.channel.close()


async def consume(
    connection: aio_pika.abc.AbstractConnection,
    queue: str,
    arrived: asyncio.Queue[Delivery | None],
    prefetch: int,
    arguments: FieldTable | None = None,
    *,
    exclusive: bool = False,
) -> Consumer:
    """Consume a queue on a new channel.

    Args:
        connection: to the broker.
        queue: the queue's name.
        arrived: receives each delivery; None when the consumer is lost.
        prefetch: the maximum number of unacknowledged deliveries.
        arguments: the consumer's arguments, such as a stream's offset.
        exclusive: whether a classic queue refuses other consumers, and this one if it has another.
    """
    async with timeout(CALL_LIMIT):
        channel = connection.channel()
        await channel.initialize()
        channel.close_callbacks.add(lambda *_: arrived.put_nowait(None))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda *_: arrived.put_nowait(None))
        await channel.set_qos(prefetch_count=prefetch)
        DeliveryAssembler(underlay, arrived.put_nowait)
        consumed = await underlay.basic_consume(
            queue, _ignore, exclusive=exclusive, arguments=arguments
        )
    return Consumer(channel, underlay, consumed.consumer_tag or "")


async def _ignore(_: DeliveredMessage) -> None:
    """Ignore the library's messages: `DeliveryAssembler` takes the frames."""
