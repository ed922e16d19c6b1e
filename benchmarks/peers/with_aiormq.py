"""Bare aiormq, which only publishes; aio-pika, built on it, runs commands."""

import os

import aiormq
from aiormq import spec
from aiormq.channel import Channel

from benchmarks.peers import task


async def main() -> None:
    """Run the measurement."""
    link = await aiormq.connect(task.URL)
    channel = await link.channel()
    assert isinstance(channel, Channel)

    async def publish(bodies: list[bytes]) -> None:
        await task.pipelined(
            lambda body: channel.basic_publish(
                body,
                exchange=task.EXCHANGE,
                routing_key=task.KEY,
                wait="PEER_NO_WAIT" not in os.environ,
                properties=spec.Basic.Properties(delivery_mode=2),
            ),
            bodies,
        )

    await task.measure(publish)
    await link.close()


if __name__ == "__main__":
    task.start(main())
