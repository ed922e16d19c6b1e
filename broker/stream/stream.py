"""Read and append to the stream `pcm.reports`."""

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
from broker.amqp.connection import CALL_LIMIT, Unreachable, map_errors
from broker.amqp.consumer import Delivery, consume
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.stream.entry import StreamEntry
from schemas.orders.signature import HEADER

_PREFETCH = 500
_CLOSE_LIMIT = 2.0
_BATCH_BYTES = 8 * 1024 * 1024


@asynccontextmanager
async def read_stream(
    connection: AbstractConnection,
    start: int | datetime | Literal["last"] | None,
    prefetch: int = _PREFETCH,
) -> AsyncIterator["StreamReader"]:
    """Read the stream on a new channel.

    Args:
        connection: to the broker.
        start: an offset, a time (reading can start a chunk earlier), "last" for the last chunk, or
            None for the beginning.
        prefetch: the maximum number of entries in flight.
    """
    arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
    offset = "first" if start is None else start
    with map_errors(f"reading {topology.REPORTS}"):
        consumer = await consume(
            connection, topology.REPORTS, arrived, prefetch, {"x-stream-offset": offset}
        )
    try:
        yield StreamReader(consumer.underlay, arrived, prefetch)
    finally:
        await consumer.end(_CLOSE_LIMIT)


class StreamReader(AsyncIterator[StreamEntry]):
    """Iterate over the entries that arrive; a cancelled wait for the next loses no entry."""

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
        await self.grant_credit()  # before an entry is taken: a cancellation here loses none
        return self._entry(await self._arrived.get())

    async def grant_credit(self) -> None:
        """Let the broker send more entries; call it before slow work on a batch.

        In a stream an acknowledgement only grants credit.
        """
        if self._credit <= self._prefetch // 2:
            with map_errors(f"reading {topology.REPORTS}"):
                await self._channel.basic_ack(self._last, multiple=True)
            self._credit = self._prefetch

    async def batch(self, limit: int) -> list[StreamEntry]:
        """Wait for the next entry; return it with the entries that have arrived behind it."""
        entries = [await anext(self)]
        size = len(entries[0].body)
        while len(entries) < limit and size < _BATCH_BYTES and not self._arrived.empty():
            entries.append(self._entry(self._arrived.get_nowait()))
            size += len(entries[-1].body)
        return entries

    def _entry(self, delivery: Delivery | None) -> StreamEntry:
        if delivery is None:
            self._arrived.put_nowait(None)  # for the next call
            raise Unreachable(f"reading {topology.REPORTS}: the connection was lost")
        properties, headers = delivery.properties, delivery.headers
        offset, signatures = headers.get("x-stream-offset"), headers.get(HEADER)
        if not isinstance(offset, int):
            raise Unreachable(f"{topology.REPORTS} is not a stream on this broker")
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
    """Publish to `pcm.reports`; the key routes to the stream or to the dead letters.

    Raises:
        Unreachable: the broker's answer is not known, or no queue is bound; append it again.
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
    """Publish messages to `pcm.reports` together.

    If one reaches no queue, the queue or its binding was deleted: declare the topology again, if
    the publisher may.

    Raises:
        Unreachable: the broker's answer is not known, or no queue is bound; append them again.
    """
    for error in await publisher.publish_all(messages):
        if error is None:
            continue
        if not publisher.declares:
            raise Unreachable(f"{error}; run pcm topology apply") from error
        with map_errors("declaring the topology"):
            async with timeout(CALL_LIMIT), publisher.connection.channel() as channel:
                await topology.apply(channel)
        raise Unreachable(f"{error}; it is declared again") from error


async def append_end_marker(publisher: Publisher) -> str:
    """Append an end marker, and return its id: RabbitMQ does not report a stream's last offset."""
    message_id = uuid.uuid4().hex
    await append(publisher, f"mark.{message_id}", b"", kind="mark", message_id=message_id)
    return message_id


async def read_all(
    connection: AbstractConnection, publisher: Publisher, start: int | datetime | None
) -> AsyncGenerator[StreamEntry, None]:
    """Yield the entries that are in the stream now."""
    marker = await append_end_marker(publisher)
    async with read_stream(connection, start) as entries:
        while True:
            with map_errors(f"reading {topology.REPORTS}"):
                async with timeout(CALL_LIMIT):
                    entry = await anext(entries)
            if entry.is_end_marker(marker):
                return
            yield entry
