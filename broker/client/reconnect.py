"""A dispatcher's connection to the broker: opened when needed, reopened when lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from aio_pika.abc import AbstractConnection

from broker.amqp import topology
from broker.amqp.connection import LoginRefused, Unreachable, address_of, connect
from broker.amqp.publisher import Publisher
from broker.client.retry_budget import RetryBudget
from broker.settings import DispatcherSettings
from schemas.orders.job import whoami

_T = TypeVar("_T")


@dataclass(frozen=True)
class DispatcherLink:
    """A connection and a publisher on it."""

    connection: AbstractConnection
    publisher: Publisher
    stack: AsyncExitStack


class Reconnector:
    """Keep one connection, and retry calls over a new one when it is lost."""

    def __init__(self, settings: DispatcherSettings, on_unreachable: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_unreachable = on_unreachable
        self._last = ""
        self._link: DispatcherLink | None = None
        self._connecting = asyncio.Lock()

    def retry_budget(self) -> RetryBudget:
        """Return a new budget of retries by the settings."""
        return RetryBudget(self._settings.patience.total_seconds(), self._on_unreachable)

    async def retry(
        self, send: Callable[[DispatcherLink], Awaitable[_T]], budget: RetryBudget | None = None
    ) -> _T:
        """Call `send` with a connection; when that is lost, call it again with a new one.

        Raises:
            Unreachable: the broker could not be reached in time.
        """
        budget = budget or self.retry_budget()
        while True:
            link = await budget.connect(self._get_link)
            try:
                result = await send(link)
            except LoginRefused:
                raise
            except Unreachable as failure:
                await self.drop(link)
                await budget.wait_once(link, failure)
            else:
                budget.reset()
                return result

    async def drop(self, link: DispatcherLink) -> None:
        """Close a failed connection; the next call opens a new one."""
        if self._link is link:
            self._link = None
        await link.stack.aclose()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._link is not None:
            await self.drop(self._link)

    async def _get_link(self) -> DispatcherLink:
        async with self._connecting:
            if self._link is None:
                async with AsyncExitStack() as stack:
                    connection = await stack.enter_async_context(
                        connect(self._settings, f"pcm {whoami()}", self._last)
                    )
                    self._last = address_of(connection)
                    await topology.ensure(connection)
                    publisher = await Publisher.open(connection)
                    self._link = DispatcherLink(connection, publisher, stack.pop_all())
            return self._link
