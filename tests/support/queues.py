"""The current content of a queue: the management API's lists are seconds old."""

import asyncio

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT


async def until_queue(
    node: Broker, queue: str, *, ready: int | None = None, consumers: int | None = None
) -> None:
    """Wait until a queue has so many ready messages and so many consumers."""
    connection = await aio_pika.connect(node.url)
    async with asyncio.timeout(LIMIT), connection, connection.channel() as channel:
        while True:
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
            if ready in (None, found.message_count) and consumers in (None, found.consumer_count):
                return
            await asyncio.sleep(0.05)


async def take_all(
    channel: AbstractChannel, queue: str, *, no_ack: bool = True
) -> list[AbstractIncomingMessage]:
    """Consume all messages of a queue; basic.get fails on one with a single active consumer."""
    found: list[AbstractIncomingMessage] = []
    await channel.default_exchange.publish(aio_pika.Message(b"", type="end of test"), queue)
    declared = await channel.get_queue(queue)
    async with asyncio.timeout(LIMIT), declared.iterator(no_ack=no_ack) as messages:
        async for message in messages:
            if message.type == "end of test":
                if not no_ack:
                    await message.ack()
                break
            found.append(message)
    return found


async def until_held(node: Broker, count: int) -> None:
    """Wait until so many messages of a virtual host were delivered, and not acknowledged."""
    words = ("list_channels", "vhost", "messages_unacknowledged")
    async with asyncio.timeout(LIMIT):
        while True:
            lines = (await asyncio.to_thread(node.ctl, *words)).splitlines()
            held = [line.split("\t") for line in lines if "\t" in line]
            if sum(int(number) for host, number in held if host == node.virtual_host) == count:
                return
