"""How long a broker that is out of reach is tried again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.amqp.connection import Backoff, LoginRefused, Unreachable

_Link = TypeVar("_Link")


class Patience:
    """How long failures in a row are borne, by one or by all who share it."""

    def __init__(self, seconds: float, told: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._told = told
        self._turn = asyncio.Lock()
        self._lost: object = None
        self._end: Unreachable | None = None
        self._backoff = Backoff(longest=2)
        self.renew()

    def renew(self) -> None:
        """Begin anew: something went well."""
        self._backoff.reset()
        self._deadline = float("inf")

    async def linked(self, link: Callable[[], Awaitable[_Link]]) -> _Link:
        """Return the link; where it has to be made again, one does that and the others wait."""
        async with self._turn:
            while self._end is None:
                try:
                    return await link()
                except LoginRefused as refusal:
                    self._end = refusal
                except Unreachable as failure:
                    await self.wait(failure)
        raise self._end

    async def lost(self, link: object, failure: Unreachable) -> None:
        """Wait once for each link that is lost, whoever of those on it says so."""
        async with self._turn:
            if self._lost is not link:
                self._lost = link
                await self.wait(failure)

    async def wait(self, failure: Unreachable) -> None:
        """Wait before the next attempt; raise the failure where there is to be none."""
        now = time.monotonic()
        first = self._backoff.failures == 0
        pause = self._backoff.failed()
        if first:
            self._deadline = now + self._seconds
            self._told(str(failure))
        if now + pause >= self._deadline:
            self._end = failure
            raise failure
        await asyncio.sleep(pause)
