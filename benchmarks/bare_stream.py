"""A bare consumer of the stream: prints messages a second; started by `benchmarks.history.bare`.

It is a separate program that imports none of our packages, so that it measures the library alone.
"""

import asyncio
import sys
import time

import aiormq
from aiormq.abc import DeliveredMessage

PREFETCH = 4000


async def main(url: str, stream: str, first: int, count: int) -> None:
    """Consume messages from an offset in the stream on, and print the rate a second."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    done = asyncio.Event()
    read = 0

    async def take(message: DeliveredMessage) -> None:
        nonlocal read
        read += 1
        if read % (PREFETCH // 2) == 0:
            await channel.basic_ack(message.delivery_tag or 0, multiple=True)
        if read == count:
            done.set()

    await channel.basic_qos(prefetch_count=PREFETCH)
    began = time.perf_counter()
    await channel.basic_consume(stream, take, arguments={"x-stream-offset": first})
    await asyncio.wait_for(done.wait(), 600)
    print(count / (time.perf_counter() - began))
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
