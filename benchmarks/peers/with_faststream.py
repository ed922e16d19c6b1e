"""FastStream, with results by replies and without.

Its `request` supports one request at a time; a queue of replies supports any number.
"""

import asyncio
import os

from faststream import FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.peers import task

WITH_RESULTS = RabbitQueue("faststream", durable=True)
WITHOUT_RESULTS = RabbitQueue("faststream-without-results", durable=True)
REPLIES = RabbitQueue("faststream-replies", durable=True)
JOBS = RabbitExchange(task.EXCHANGE, type=ExchangeType.TOPIC, durable=True, declare=False)

broker = RabbitBroker(task.URL, default_channel=Channel(prefetch_count=task.AT_ONCE))
app = FastStream(broker)
sender = RabbitBroker(task.URL)
replies: asyncio.Queue[task.Result] = asyncio.Queue()


@broker.subscriber(WITH_RESULTS)  # type: ignore[untyped-decorator]
async def run() -> task.Result:
    """Run the command, and reply."""
    return await task.run_in_loop()


@broker.subscriber(WITHOUT_RESULTS)  # type: ignore[untyped-decorator]
async def run_without_results() -> None:
    """Run the command."""
    await task.run_without_results_in_loop()


@sender.subscriber(REPLIES)  # type: ignore[untyped-decorator]
async def reply(result: task.Result) -> None:
    """Store a reply."""
    replies.put_nowait(result)


async def commands(count: int) -> None:
    """Run commands, and get all results."""

    async def replied() -> None:
        for _ in range(count):
            await replies.get()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(replied())
        await task.pipelined(
            lambda _: sender.publish(b"", WITH_RESULTS, reply_to=REPLIES.name, persist=True),
            range(count),
        )


async def commands_without_results(count: int) -> None:
    """Run commands, and wait until all have ended."""
    end = task.counted() + count
    await task.pipelined(lambda _: sender.publish(b"", WITHOUT_RESULTS, persist=True), range(count))
    await task.until_counted(end)


async def publish(bodies: list[bytes]) -> None:
    """Publish many messages at a time."""
    await task.pipelined(
        lambda body: sender.publish(body, exchange=JOBS, routing_key=task.KEY, persist=True), bodies
    )


async def main() -> None:
    """Run the measurement."""
    await sender.start()
    for queue in (WITH_RESULTS, WITHOUT_RESULTS):
        await sender.declare_queue(queue)  # before the worker does, or messages are lost
    await task.measure(
        publish, commands_without_results if "PEER_WITHOUT_RESULTS" in os.environ else commands
    )
    await sender.stop()


if __name__ == "__main__":
    task.start(main())
