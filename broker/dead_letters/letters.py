"""The letters in `pcm.dead`: looked at without harm, sent again, or dropped."""

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
    translated,
)
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.dead_letters.letter import Letter, mark, read_letter
from broker.dead_letters.resending import NotRequeued, by_message, resend
from broker.settings import BrokerSettings, load
from schemas.errors import PcmError
from schemas.job import whoami

MOST = 65_535
"""Letters that one look can hold: AMQP counts a consumer's unacknowledged messages in 16 bits."""

_LOCK = "pcm.dead.lock"
_QUIET = 1.0  # seconds without a letter, after which we ask whether there are more
_PAUSE = 0.1
_ATTEMPTS = 10


class Busy(BrokerError):
    """Somebody else holds the letters."""


class UnknownLetter(PcmError):
    """No letter, or more than one, has an id that begins so."""


class Requeued(NamedTuple):
    """What became of the letters of a message: the keys it was sent by again, or why not."""

    letters: list[Letter]
    routing_keys: tuple[str, ...]
    error: NotRequeued | Unroutable | None


class _Copy(NamedTuple):
    tag: int
    mark: bytes
    seen_before: bool


def _nothing(_: str) -> bool:
    return False


class DeadLetters:
    """The letters that are in `pcm.dead`, held for us alone.

    The broker gives back to the queue whatever is not dropped, once we let go of it, or are gone.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        channel: AbstractChannel,
        publisher: Publisher,
        whole: Callable[[str], bool],
    ) -> None:
        self.left_out = 0
        """How many there are beyond those that one look can hold."""
        self._connection = connection
        self._channel = channel
        self._publisher = publisher
        self._whole = whole
        self._letters: dict[str, Letter] = {}
        self._copies: dict[str, list[_Copy]] = {}
        self._missing = 0
        self._over = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: BrokerSettings | None = None,
        *,
        whole: Callable[[str], bool] = _nothing,
    ) -> AsyncIterator[Self]:
        """Take all letters into our hands, and give them back in the end.

        Args:
            settings: how the broker is reached; default: from the environment.
            whole: tells by the id of which letters headers and body are kept in memory.

        Raises:
            Busy: somebody else holds them, and does not let go in time.
            Unreachable: the broker is out of reach, or stuck.
        """
        name = f"pcm dead {whoami()}"
        async with connect(settings or load(BrokerSettings), name) as connection:
            await topology.ensure(connection)
            with translated(f"reading {topology.DEAD}"):
                channel = await _alone(connection)
                letters = cls(connection, channel, await Publisher.open(connection), whole)
                await letters._read()
            yield letters
            # Not by ending the consumer: the broker would go on to count as ours what we hold.
            with translated(f"giving back what is left of {topology.DEAD}"):
                async with timeout(CALL_LIMIT):
                    await letters._channel.close()

    def __iter__(self) -> Iterator[Letter]:
        """Yield the letters, the oldest first."""
        first = datetime.min.replace(tzinfo=UTC)
        return iter(sorted(self._letters.values(), key=lambda letter: letter.at or first))

    def __len__(self) -> int:
        return len(self._letters)

    def find(self, beginning: str) -> Letter:
        """Return the letter whose id begins so.

        Raises:
            UnknownLetter: there is none, or more than one.
        """
        wanted = beginning.lower()
        found = [known for known in self._letters if wanted and known.startswith(wanted)]
        if not found:
            raise UnknownLetter(f"{beginning!r}: no such letter")
        if len(found) > 1:
            raise UnknownLetter(f"{beginning!r}: {len(found)} letters begin so; write more of it")
        return self._letters[found[0]]

    async def requeue(self, letter: Letter) -> tuple[str, ...]:
        """Send a letter again; it stays until it is dropped. See `resend`."""
        return await resend(self._publisher, letter)

    async def requeue_all(self, letters: Iterable[Letter]) -> AsyncGenerator[Requeued, None]:
        """Send letters again, and drop those that were; yield what became of each message.

        Letters of the same message are sent once. They are dropped after the last was sent; what
        comes back to the queue meanwhile stays.

        Args:
            letters: of which headers and body were asked for (`whole` of `open`).

        Raises:
            Unreachable: it is not known of the rest whether they were sent; again does no harm.
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
        """Remove letters from the queue for good, with all their copies that were seen.

        Raises:
            Unreachable: some of them may still be there.
        """
        ids = {letter.id for letter in letters}
        doomed = {copy.mark for known in ids for copy in self._copies.get(known, ())}
        chosen = [copy.tag for known in ids for copy in self._copies.get(known, ())]
        for _ in range(_ATTEMPTS):
            if not chosen:
                return
            with translated("dropping letters"):
                async with timeout(CALL_LIMIT):
                    await self._acknowledge(sorted(chosen))
                    await self._channel.close()
                # Of many acknowledgements, a quorum queue's channel may lose those that it has
                # not passed on when it closes: so we look whether they are gone.
                self._channel = await _alone(self._connection)
                self._letters, self._copies = {}, {}
                self._over.clear()
                await self._read()
            # What nobody was given before has come meanwhile, such as what was just sent again.
            there = [copy for known in ids for copy in self._copies.get(known, ())]
            doomed -= {copy.mark for copy in there if not copy.seen_before}
            chosen = [copy.tag for copy in there if copy.mark in doomed]
        raise Unreachable("dropping letters: some are still there")

    async def _acknowledge(self, chosen: list[int]) -> None:
        underlay = await self._channel.get_underlay_channel()
        held = sorted(copy.tag for copies in self._copies.values() for copy in copies)
        leading = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(held, chosen))))  # noqa: B905 - the shorter one counts
        if leading:
            await underlay.basic_ack(chosen[leading - 1], multiple=True)
        for tag in chosen[leading:]:
            await underlay.basic_ack(tag)
        await _counts(self._channel)  # answered only after all that came before

    async def _read(self) -> None:
        async def arrive(message: AbstractIncomingMessage) -> None:
            self._add(message)

        self._channel.close_callbacks.add(lambda *_: self._over.set())
        async with timeout(CALL_LIMIT):
            there, _ = await _counts(self._channel)
            self._missing = min(there, MOST)
            self.left_out = there - self._missing
            if not self._missing:
                return
            await self._channel.set_qos(prefetch_count=self._missing)
            queue = await self._channel.declare_queue(topology.DEAD, passive=True)
            await queue.consume(arrive)
        await self._until_all_came()

    async def _until_all_came(self) -> None:
        last, since = self._missing, time.monotonic()
        while self._missing:
            with suppress(TimeoutError):
                async with timeout(_QUIET):
                    await self._over.wait()
            if self._missing and self._channel.is_closed:
                raise Unreachable(f"reading {topology.DEAD}: the connection was lost")
            if self._missing < last:
                last, since = self._missing, time.monotonic()
                continue
            async with timeout(CALL_LIMIT):
                there, _ = await _counts(self._channel)
            if not there and self._missing == last:
                self._missing = 0  # some were purged or grew too old after they were counted
                return
            if time.monotonic() - since > CALL_LIMIT:
                raise TimeoutError

    def _add(self, message: AbstractIncomingMessage) -> None:
        if not self._missing:
            return
        letter = read_letter(message)
        known = self._letters.get(letter.id)
        if known is not None:
            times = [at for at in (known.at, letter.at) if at]
            letter = replace(known, count=known.count + 1, at=max(times, default=None))
        elif self._whole(letter.id):
            letter = replace(letter, headers=message.headers, body=message.body)
        self._letters[letter.id] = letter
        copy = _Copy(message.delivery_tag or 0, mark(message), bool(message.redelivered))
        self._copies.setdefault(letter.id, []).append(copy)
        self._missing -= 1
        if not self._missing:
            self._over.set()


async def _alone(connection: AbstractConnection) -> AbstractChannel:
    """Return a channel on which we are the only one to read letters.

    Who looks while another holds some would see fewer, and take them for all. RabbitMQ lets two
    consume a quorum queue even where both ask to be the only one; but a queue of one connection's
    own is a lock, which the broker itself unlocks when the connection ends.
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
                # The consumer of who was here before may outlive its lock by an instant.
                _, consumers = await _counts(channel)
                if not consumers:
                    return channel
                await channel.close()
        if time.monotonic() > deadline:
            raise Busy(f"somebody else is looking into {topology.DEAD}; try again")
        await asyncio.sleep(_PAUSE)


async def _counts(channel: AbstractChannel) -> tuple[int, int]:
    """Return how many letters nobody holds, and how many consumers there are."""
    queue = await channel.declare_queue(topology.DEAD, passive=True)
    found = queue.declaration_result
    return found.message_count or 0, found.consumer_count or 0
