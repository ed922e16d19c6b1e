"""A bare consumer that waits: the least that an agent of Python can be.

`pydantic` as an argument: it reads what it gets by a model, as agents have to.
"""

import asyncio
import os
import sys

import aio_pika


async def main() -> None:
    """Consume, until killed."""
    read = None
    if sys.argv[1:] == ["pydantic"]:
        from pydantic import BaseModel

        class Asked(BaseModel):
            """What is asked."""

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
