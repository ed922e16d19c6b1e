"""Limit the time for which an unreachable broker is retried."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.amqp.connection import Backoff, LoginRefused, Unreachable

_Link = TypeVar("_Link")


class RetryBudget:
    """The time limit for failures in a row, of one call or of several that share it."""

    def __init__(self, seconds: float, on_unreachable: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._on_unreachable = on_unreachable
        self._lock = asyncio.Lock()
        self._lost_link: object = None
        self._final_error: Unreachable | None = None
        self._backoff = Backoff(longest=2)
        self.reset()

    def reset(self) -> None:
        """Restore the whole budget after a success."""
        self._backoff.reset()
        self._deadline = float("inf")

    async def connect(self, get_link: Callable[[], Awaitable[_Link]]) -> _Link:
        """Return the connection; one caller reconnects while the others wait."""
        async with self._lock:
            while self._final_error is None:
                try:
                    return await get_link()
                except LoginRefused as refusal:
                    self._final_error = refusal
                except Unreachable as failure:
                    await self.wait(failure)
        raise self._final_error

    async def wait_once(self, link: object, failure: Unreachable) -> None:
        """Wait once for each lost connection, by whichever caller reports it first."""
        async with self._lock:
            if self._lost_link is not link:
                self._lost_link = link
                await self.wait(failure)

    async def wait(self, failure: Unreachable) -> None:
        """Wait before the next attempt; raise the failure if the budget is used up."""
        now = time.monotonic()
        is_first = self._backoff.failures == 0
        pause = self._backoff.failed()
        if is_first:
            self._deadline = now + self._seconds
            self._on_unreachable(str(failure))
        if now + pause >= self._deadline:
            self._final_error = failure
            raise failure
        await asyncio.sleep(pause)
