"""Takes a channel's deliveries as their frames come.

The library's own way is two queues, a task and a copy for each message: more than the message
costs who reads many.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from aiormq.abc import AbstractChannel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.common import FieldTable
from pamqp.header import ContentHeader


class Delivery(NamedTuple):
    """A message as it came."""

    tag: int
    key: str
    properties: Basic.Properties
    body: bytes

    @property
    def headers(self) -> FieldTable:
        """Its headers."""
        return self.properties.headers or {}


class Deliveries:
    """Puts together what arrives on a channel that does nothing but consume."""

    def __init__(self, channel: AbstractChannel, take: Callable[[Delivery], None]) -> None:
        """Begin; `take` is called with each delivery, at once."""
        self._take = take
        self._method: Basic.Deliver | None = None
        self._header = ContentHeader()
        self._parts: list[bytes] = []
        self._left = 0
        # Whatever else comes, the library deals with.
        self._others = channel.frames.put
        channel.frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        method = self._method
        if isinstance(frame, Basic.Deliver):
            self._method = frame
            return
        if method is not None and isinstance(frame, ContentHeader):
            self._header, self._parts, self._left = frame, [], frame.body_size
        elif method is not None and isinstance(frame, ContentBody):
            self._parts.append(frame.value)
            self._left -= len(frame.value)
        else:
            await self._others(item)
            return
        if self._left <= 0:
            self._method = None
            properties, body = self._header.properties, b"".join(self._parts)
            self._take(
                Delivery(method.delivery_tag or 0, method.routing_key or "", properties, body)
            )
