"""A bare idle consumer: the lower limit for an agent in Python.

With the argument `pydantic` it validates messages by a model, as agents do.
"""

import asyncio
import os
import sys

import aio_pika


async def main() -> None:
    """Consume messages until killed."""
    read = None
    if sys.argv[1:] == ["pydantic"]:
        from pydantic import BaseModel

        class Asked(BaseModel):
            """A command."""

            id: str
            argv: tuple[str, ...]

        read = Asked.model_validate_json
    link = await aio_pika.connect(f"{os.environ['PEER_URL']}?heartbeat=10")
    async with link, link.channel() as channel:
        queue = await channel.declare_queue("idle", durable=True)
        async with queue.iterator() as messages:
            async for message in messages:
                if read is not None:
                    read(message.body)
                await message.ack()


if __name__ == "__main__":
    asyncio.run(main())
