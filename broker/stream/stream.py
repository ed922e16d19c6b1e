"""The stream `pcm.reports`: what was asked and what happened, read from any point of it."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Literal

from aio_pika.abc import AbstractConnection, HeadersType
from aiormq.abc import AbstractChannel

from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.connection import CALL_LIMIT, Unreachable, translated
from broker.amqp.consumer import Delivery, consume
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.stream.entry import StreamEntry
from schemas.signature import HEADER

_PREFETCH = 500
_END_LIMIT = 2.0
_BATCH_BYTES = 8 * 1024 * 1024


@asynccontextmanager
async def read(
    connection: AbstractConnection,
    start: int | datetime | Literal["last"] | None,
    prefetch: int = _PREFETCH,
) -> AsyncIterator["StreamReader"]:
    """Read the stream on a channel of its own.

    Args:
        connection: to the broker.
        start: an offset, a time (a chunk earlier is possible), "last" for the last chunk, or None
            for the beginning.
        prefetch: how many entries may be under way.
    """
    arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
    offset = "first" if start is None else start
    with translated(f"reading {topology.REPORTS}"):
        consumer = await consume(
            connection, topology.REPORTS, arrived, prefetch, {"x-stream-offset": offset}
        )
    try:
        yield StreamReader(consumer.underlay, arrived, prefetch)
    finally:
        await consumer.end(_END_LIMIT)


class StreamReader(AsyncIterator[StreamEntry]):
    """What arrives on a stream's channel; waiting for the next may be cancelled, and taken up."""

    def __init__(
        self,
        channel: AbstractChannel,
        arrived: "asyncio.Queue[Delivery | None]",
        prefetch: int,
    ) -> None:
        self._channel = channel
        self._arrived = arrived
        self._prefetch = self._credit = prefetch
        self._last = 0

    async def __anext__(self) -> StreamEntry:
        await self.let_come()  # before the next is taken: who is cancelled here has taken none
        return self._entry(await self._arrived.get())

    async def let_come(self) -> None:
        """Let more come; who takes long over what was taken does this before.

        An acknowledgement is only credit for more.
        """
        if self._credit <= self._prefetch // 2:
            with translated(f"reading {topology.REPORTS}"):
                await self._channel.basic_ack(self._last, multiple=True)
            self._credit = self._prefetch

    async def batch(self, most: int) -> list[StreamEntry]:
        """Wait for the next entry; return it with those that have arrived behind it."""
        entries = [await anext(self)]
        size = len(entries[0].body)
        while len(entries) < most and size < _BATCH_BYTES and not self._arrived.empty():
            entries.append(self._entry(self._arrived.get_nowait()))
            size += len(entries[-1].body)
        return entries

    def _entry(self, delivery: Delivery | None) -> StreamEntry:
        if delivery is None:
            self._arrived.put_nowait(None)  # for whoever asks again
            raise Unreachable(f"reading {topology.REPORTS}: the connection was lost")
        properties, headers = delivery.properties, delivery.headers
        offset, signatures = headers.get("x-stream-offset"), headers.get(HEADER)
        if not isinstance(offset, int):
            raise Unreachable(f"{topology.REPORTS} is no stream on this broker")
        self._credit -= 1
        self._last = delivery.tag
        return StreamEntry(
            offset,
            properties.message_type or "",
            properties.message_id or "",
            delivery.body,
            properties.user_id or "",
            delivery.key,
            signatures if isinstance(signatures, str) else "",
        )


async def append(
    publisher: Publisher,
    key: str,
    body: bytes,
    *,
    kind: str,
    message_id: str | None = None,
    headers: HeadersType | None = None,
    content_type: str = "application/json",
) -> None:
    """Publish to `pcm.reports`: to the stream's end, or to the dead letters, as the key says.

    Raises:
        Unreachable: the answer is not known, or it reached nothing; append it again.
    """
    message = publisher.outgoing(
        topology.REPORTS,
        key,
        body,
        kind=kind,
        message_id=message_id,
        headers=headers,
        unroutable_fails=True,
        content_type=content_type,
    )
    await append_all(publisher, [message])


async def append_all(publisher: Publisher, messages: Sequence[Outgoing]) -> None:
    """Publish messages to `pcm.reports` at once.

    Where one reaches nothing, somebody deleted what it leads to: it is declared and bound again,
    by whoever may.

    Raises:
        Unreachable: the answer is not known, or one reached nothing; append them again.
    """
    for error in await publisher.publish_all(messages):
        if error is None:
            continue
        if not publisher.declares:
            raise Unreachable(f"{error}; pcm topology apply makes again what is missing") from error
        with translated("declaring the topology"):
            async with timeout(CALL_LIMIT), publisher.connection.channel() as channel:
                await topology.apply(channel)
        raise Unreachable(f"{error}; what it leads to is made again") from error


async def mark(publisher: Publisher) -> str:
    """Put a mark at the stream's end; there is no other way to know later where that was."""
    message_id = uuid.uuid4().hex
    await append(publisher, f"mark.{message_id}", b"", kind="mark", message_id=message_id)
    return message_id


async def read_all(
    connection: AbstractConnection, publisher: Publisher, start: int | datetime | None
) -> AsyncGenerator[StreamEntry, None]:
    """Yield what is in the stream now, and end."""
    end = await mark(publisher)
    async with read(connection, start) as entries:
        while True:
            with translated(f"reading {topology.REPORTS}"):
                async with timeout(CALL_LIMIT):
                    entry = await anext(entries)
            if entry.is_mark(end):
                return
            yield entry
