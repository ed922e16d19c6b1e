"""Bare aio-pika: a consumer that runs a command, replies with a confirm, and then acknowledges."""

import asyncio
import json
import sys

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.peers import task

COMMANDS = "aio-pika"
REPLIES = "aio-pika-replies"


async def work() -> None:
    """Run the worker."""
    async with await aio_pika.connect(task.URL) as link, link.channel() as channel:
        await channel.set_qos(task.AT_ONCE)
        queue = await channel.declare_queue(COMMANDS, durable=True)

        async def run(message: AbstractIncomingMessage) -> None:
            body = json.dumps(await task.run_in_loop()).encode()
            await channel.default_exchange.publish(
                Message(body, delivery_mode=DeliveryMode.PERSISTENT), message.reply_to or ""
            )
            await message.ack()

        await queue.consume(run)
        await asyncio.Future()


async def main() -> None:
    """Run the measurement."""
    replies: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(task.URL) as link, link.channel() as channel:

        async def commands(count: int) -> None:
            async def replied() -> None:
                for _ in range(count):
                    json.loads((await replies.get()).body)

            message = Message(b"", delivery_mode=DeliveryMode.PERSISTENT, reply_to=REPLIES)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(replied())
                await task.pipelined(
                    lambda _: channel.default_exchange.publish(message, COMMANDS), range(count)
                )

        async def publish(bodies: list[bytes]) -> None:
            exchange = await channel.get_exchange(task.EXCHANGE, ensure=False)
            await task.pipelined(
                lambda body: exchange.publish(
                    Message(body, delivery_mode=DeliveryMode.PERSISTENT), task.KEY
                ),
                bodies,
            )

        if not task.PUBLISHES:
            await channel.declare_queue(COMMANDS, durable=True)
            queue = await channel.declare_queue(REPLIES, durable=True)
            await queue.consume(replies.put, no_ack=True)
        await task.measure(publish, commands)


if __name__ == "__main__":
    task.start(work() if sys.argv[1:] == ["worker"] else main())
