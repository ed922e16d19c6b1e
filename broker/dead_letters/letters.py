"""Read, requeue and drop the dead letters in `pcm.dead`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import NamedTuple, Self

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import ChannelLockedResource

from broker.amqp import topology
from broker.amqp.connection import (
    CALL_LIMIT,
    BrokerError,
    Unreachable,
    Unroutable,
    connect,
    map_errors,
)
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.dead_letters.letter import Letter, fingerprint, read_letter
from broker.dead_letters.resending import NotRequeued, by_message, resend
from broker.settings import BrokerSettings, load
from schemas.errors import PcmError
from schemas.orders.job import whoami

MAX_LETTERS = 65_535
"""The maximum of unacknowledged messages of a consumer: AMQP counts them in 16 bits."""

_LOCK = "pcm.dead.lock"
_IDLE_CHECK = 1.0  # seconds without a letter until we ask whether there are more
_LOCK_RETRY = 0.1
_DROP_ATTEMPTS = 10


class Busy(BrokerError):
    """Another program holds the letters."""


class UnknownLetter(PcmError):
    """No letter has this id, or several ids begin so."""


class Requeued(NamedTuple):
    """The outcome for the letters of one message: its routing keys, or the error."""

    letters: list[Letter]
    routing_keys: tuple[str, ...]
    error: NotRequeued | Unroutable | None


class _Copy(NamedTuple):
    tag: int
    fingerprint: bytes
    redelivered: bool


def _no_content(_: str) -> bool:
    return False


class DeadLetters:
    """The letters in `pcm.dead`, held exclusively.

    Letters that are not dropped return to the queue when it is closed or the connection is lost.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        channel: AbstractChannel,
        publisher: Publisher,
        keep_content: Callable[[str], bool],
    ) -> None:
        self.left_out = 0
        """The number of letters beyond the maximum."""
        self._connection = connection
        self._channel = channel
        self._publisher = publisher
        self._keep_content = keep_content
        self._letters: dict[str, Letter] = {}
        self._copies: dict[str, list[_Copy]] = {}
        self._remaining = 0
        self._finished = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: BrokerSettings | None = None,
        *,
        keep_content: Callable[[str], bool] = _no_content,
    ) -> AsyncIterator[Self]:
        """Hold all letters, and return them to the queue at the end.

        Args:
            settings: the settings; default: from the environment.
            keep_content: is called with a letter's id: whether its headers and body are kept in
                memory.

        Raises:
            Busy: another program holds them, and does not release them in time.
            Unreachable: the broker is unreachable, or does not answer.
        """
        name = f"pcm dead {whoami()}"
        async with connect(settings or load(BrokerSettings), name) as connection:
            await topology.ensure(connection)
            with map_errors(f"reading {topology.DEAD}"):
                channel = await _exclusive_channel(connection)
                publisher = await Publisher.open(connection)
                letters = cls(connection, channel, publisher, keep_content)
                await letters._read()
            yield letters
            # A cancelled consumer would still hold its unacknowledged messages.
            with map_errors(f"returning letters to {topology.DEAD}"):
                async with timeout(CALL_LIMIT):
                    await letters._channel.close()

    def __iter__(self) -> Iterator[Letter]:
        """Yield the letters, the oldest first."""
        first = datetime.min.replace(tzinfo=UTC)
        return iter(sorted(self._letters.values(), key=lambda letter: letter.at or first))

    def __len__(self) -> int:
        return len(self._letters)

    def find(self, beginning: str) -> Letter:
        """Return a letter by its id, or the beginning of its id.

        Raises:
            UnknownLetter: no letter has this id, or several ids begin so.
        """
        wanted = beginning.lower()
        ids = [letter_id for letter_id in self._letters if wanted and letter_id.startswith(wanted)]
        if not ids:
            raise UnknownLetter(f"{beginning!r}: no such letter")
        if len(ids) > 1:
            raise UnknownLetter(f"{beginning!r}: matches {len(ids)} letters; give more of the id")
        return self._letters[ids[0]]

    async def requeue(self, letter: Letter) -> tuple[str, ...]:
        """Send a letter again; it stays in the queue until it is dropped. See `resend`."""
        return await resend(self._publisher, letter)

    async def requeue_all(self, letters: Iterable[Letter]) -> AsyncGenerator[Requeued, None]:
        """Send letters again and drop those that were sent; yield the outcome of each message.

        Letters of the same message are sent once. They are dropped after the last was sent; letters
        that arrive in the meantime stay.

        Args:
            letters: the letters, with their content (`keep_content` of `open`).

        Raises:
            Unreachable: the other letters may have been sent; it is safe to send them again.
        """
        sent: list[Letter] = []
        for group in by_message(letters):
            try:
                keys = await self.requeue(group[0])
            except (NotRequeued, Unroutable) as error:
                yield Requeued(group, (), error)
            else:
                yield Requeued(group, keys, None)
                sent += group
        await self.drop(*sent)

    async def drop(self, *letters: Letter) -> None:
        """Remove letters from the queue permanently, with all their copies that were read.

        Raises:
            Unreachable: some of them may still be in the queue.
        """
        ids = {letter.id for letter in letters}
        copies = self._copies_of(ids)
        dropped = {copy.fingerprint for copy in copies}
        tags = [copy.tag for copy in copies]
        for _ in range(_DROP_ATTEMPTS):
            if not tags:
                return
            with map_errors("dropping letters"):
                async with timeout(CALL_LIMIT):
                    await self._acknowledge(sorted(tags))
                    await self._channel.close()
                # A quorum queue can lose acknowledgements when their channel closes: read the
                # queue again to check that the letters are removed.
                self._channel = await _exclusive_channel(self._connection)
                self._letters, self._copies = {}, {}
                self._finished.clear()
                await self._read()
            # A copy that was not redelivered is new, such as one that was just sent again: keep it.
            copies = self._copies_of(ids)
            dropped -= {copy.fingerprint for copy in copies if not copy.redelivered}
            tags = [copy.tag for copy in copies if copy.fingerprint in dropped]
        raise Unreachable("dropping letters: some are still in the queue")

    def _copies_of(self, ids: Iterable[str]) -> list[_Copy]:
        return [copy for letter_id in ids for copy in self._copies.get(letter_id, ())]

    async def _acknowledge(self, tags: list[int]) -> None:
        aiormq_channel = await self._channel.get_underlay_channel()
        held = sorted(copy.tag for copies in self._copies.values() for copy in copies)
        leading = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(held, tags))))  # noqa: B905 - the shorter one counts
        if leading:
            await aiormq_channel.basic_ack(tags[leading - 1], multiple=True)
        for tag in tags[leading:]:
            await aiormq_channel.basic_ack(tag)
        await _counts(self._channel)  # its answer proves that the acknowledgements were received

    async def _read(self) -> None:
        async def on_message(message: AbstractIncomingMessage) -> None:
            self._add(message)

        self._channel.close_callbacks.add(lambda *_: self._finished.set())
        async with timeout(CALL_LIMIT):
            ready, _ = await _counts(self._channel)
            self._remaining = min(ready, MAX_LETTERS)
            self.left_out = ready - self._remaining
            if not self._remaining:
                return
            await self._channel.set_qos(prefetch_count=self._remaining)
            queue = await self._channel.declare_queue(topology.DEAD, passive=True)
            await queue.consume(on_message)
        await self._wait_for_all()

    async def _wait_for_all(self) -> None:
        last, last_arrival = self._remaining, time.monotonic()
        while self._remaining:
            with suppress(TimeoutError):
                async with timeout(_IDLE_CHECK):
                    await self._finished.wait()
            if self._remaining and self._channel.is_closed:
                raise Unreachable(f"reading {topology.DEAD}: the connection was lost")
            if self._remaining < last:
                last, last_arrival = self._remaining, time.monotonic()
                continue
            async with timeout(CALL_LIMIT):
                ready, _ = await _counts(self._channel)
            if not ready and self._remaining == last:
                self._remaining = 0  # the others were purged or have expired
                return
            if time.monotonic() - last_arrival > CALL_LIMIT:
                raise TimeoutError

    def _add(self, message: AbstractIncomingMessage) -> None:
        if not self._remaining:
            return
        letter = read_letter(message)
        known = self._letters.get(letter.id)
        if known is not None:
            times = [time for time in (known.at, letter.at) if time]
            letter = replace(known, count=known.count + 1, at=max(times, default=None))
        elif self._keep_content(letter.id):
            letter = replace(letter, headers=message.headers, body=message.body)
        self._letters[letter.id] = letter
        copy = _Copy(message.delivery_tag or 0, fingerprint(message), bool(message.redelivered))
        self._copies.setdefault(letter.id, []).append(copy)
        self._remaining -= 1
        if not self._remaining:
            self._finished.set()


async def _exclusive_channel(connection: AbstractConnection) -> AbstractChannel:
    """Return a channel whose consumer is the only one of the dead letters.

    A second reader would see only some of the letters. RabbitMQ allows two consumers of a quorum
    queue even if both are exclusive. An exclusive queue is used as a lock: the broker deletes it
    when the connection ends.
    """
    deadline = time.monotonic() + CALL_LIMIT
    locked = False
    while True:
        async with timeout(CALL_LIMIT):
            channel = connection.channel()
            await channel.initialize()
            with suppress(ChannelLockedResource):
                if not locked:
                    await channel.declare_queue(_LOCK, exclusive=True)
                    locked = True
                # The previous reader's consumer can end shortly after its lock.
                _, consumers = await _counts(channel)
                if not consumers:
                    return channel
                await channel.close()
        if time.monotonic() > deadline:
            raise Busy(f"another program is reading {topology.DEAD}; try again")
        await asyncio.sleep(_LOCK_RETRY)


async def _counts(channel: AbstractChannel) -> tuple[int, int]:
    """Return the numbers of ready letters and of consumers."""
    queue = await channel.declare_queue(topology.DEAD, passive=True)
    counts = queue.declaration_result
    return counts.message_count or 0, counts.consumer_count or 0
