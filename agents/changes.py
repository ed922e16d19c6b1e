"""Tells those who show what an agent does that something of it is different now."""

import asyncio
from contextlib import suppress

from broker.amqp.timeouts import timeout


class Changes:
    """Counts changes; whoever has seen so many may wait for the next. For one event loop."""

    def __init__(self) -> None:
        self.number = 0
        """How many there were."""
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Tell all who wait that something changed."""
        self.number += 1
        self._next.set()
        self._next = asyncio.Event()

    async def beyond(self, number: int, limit: float | None = None) -> bool:
        """Wait for more changes than `number`, for at most so many seconds; return if there are."""
        with suppress(TimeoutError):
            async with timeout(limit):
                while self.number <= number:
                    await self._next.wait()
        return self.number > number
