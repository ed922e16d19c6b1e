"""Channels whose close cannot be cut short.

The library closes a channel a second time if its close is cancelled, or is not answered within a
heartbeat. RabbitMQ answers the second close by closing the whole connection.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import aio_pika
from aiormq.exceptions import ChannelClosed
from pamqp.commands import Channel as Methods

_CLOSE_LIMIT = 10.0
_REPLY_SUCCESS = 200
_unfinished: set[asyncio.Task[None]] = set()


class Channel(aio_pika.Channel):
    """A channel that is closed once, and completely."""

    async def close(self, exc: object = None) -> None:  # noqa: ARG002 - the library's signature
        """Close the channel; what a cancellation or a time limit leaves is done in the background.

        Args:
            exc: ignored.
        """
        if self.is_initialized and not self.is_closed:
            await finish(self._close(), _CLOSE_LIMIT)

    async def _close(self) -> None:
        channel: Any = await self.get_underlay_channel()
        with suppress(ChannelClosed):  # the answer of the broker
            await channel.rpc(
                Methods.Close(reply_code=_REPLY_SUCCESS, reply_text="", class_id=0, method_id=0)
            )
        if not self._closed.done():
            self._closed.set_result(True)


async def finish(ending: Coroutine[Any, Any, None], limit: float) -> None:
    """Run a coroutine in a task that is never cancelled, and wait up to `limit` seconds for it.

    Its errors are dropped: a close that fails was lost with its connection, which is noticed
    elsewhere.
    """
    task = asyncio.create_task(ending)
    _unfinished.add(task)
    task.add_done_callback(_drop)
    await asyncio.wait({task}, timeout=limit)


def _drop(task: asyncio.Task[None]) -> None:
    _unfinished.discard(task)
    if not task.cancelled():
        task.exception()
