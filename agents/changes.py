"""Notifies the views of an agent that its state has changed."""

import asyncio
from contextlib import suppress

from broker.amqp.timeouts import timeout


class Changes:
    """Counts changes, and lets tasks of one event loop wait for the next."""

    def __init__(self) -> None:
        self.number = 0
        """Number of changes so far."""
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Count a change and wake all waiting tasks."""
        self.number += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait_beyond(self, number: int, limit: float | None = None) -> bool:
        """Wait up to `limit` seconds for more than `number` changes; return whether there are."""
        with suppress(TimeoutError):
            async with timeout(limit):
                while self.number <= number:
                    await self._next.wait()
        return self.number > number
