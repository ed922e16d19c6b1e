"""A dispatcher's way to the broker: made when it is needed, and again when it is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from aio_pika.abc import AbstractConnection

from broker.amqp import topology
from broker.amqp.connection import LoginRefused, Unreachable, connect, where
from broker.amqp.publisher import Publisher
from broker.client.retry_budget import Patience
from broker.settings import DispatcherSettings
from schemas.job import whoami

_T = TypeVar("_T")


@dataclass(frozen=True)
class DispatcherLink:
    """A connection, and a publisher on it."""

    connection: AbstractConnection
    publisher: Publisher
    stack: AsyncExitStack


class Reconnector:
    """Keeps one link at a time."""

    def __init__(self, settings: DispatcherSettings, told: Callable[[str], None]) -> None:
        self._settings = settings
        self._told = told
        self._last = ""
        self._link: DispatcherLink | None = None
        self._linking = asyncio.Lock()

    def patience(self) -> Patience:
        """Return how long failures in a row are to be borne."""
        return Patience(self._settings.patience.total_seconds(), self._told)

    async def persist(
        self, send: Callable[[DispatcherLink], Awaitable[_T]], patience: Patience | None = None
    ) -> _T:
        """Do something over the link; when the link fails, do it again over a new one.

        Raises:
            Unreachable: the broker could not be reached in time.
        """
        patience = patience or self.patience()
        while True:
            link = await patience.linked(self._linked)
            try:
                result = await send(link)
            except LoginRefused:
                raise
            except Unreachable as failure:
                await self.drop(link)
                await patience.lost(link, failure)
            else:
                patience.renew()
                return result

    async def drop(self, link: DispatcherLink) -> None:
        """Close a link that failed; the next one is a new one."""
        if self._link is link:
            self._link = None
        await link.stack.aclose()

    async def close(self) -> None:
        """Close what there is."""
        if self._link is not None:
            await self.drop(self._link)

    async def _linked(self) -> DispatcherLink:
        async with self._linking:
            if self._link is None:
                async with AsyncExitStack() as stack:
                    connection = await stack.enter_async_context(
                        connect(self._settings, f"pcm {whoami()}", self._last)
                    )
                    self._last = where(connection)
                    await topology.ensure(connection)
                    publisher = await Publisher.open(connection)
                    self._link = DispatcherLink(connection, publisher, stack.pop_all())
            return self._link
