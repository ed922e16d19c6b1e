"""Publish messages with publisher confirms."""

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self, cast

from aio_pika.abc import AbstractChannel, AbstractConnection, HeadersType
from aio_pika.exceptions import PublishError
from pamqp.commands import Basic

from broker.amqp import batch_publish
from broker.amqp.batch_publish import Outgoing
from broker.amqp.connection import (
    CALL_LIMIT,
    Blocked,
    Unreachable,
    Unroutable,
    blocked,
    map_errors,
    underlay,
)
from broker.amqp.timeouts import timeout

if TYPE_CHECKING:
    from aiormq.channel import Channel


STORE_LIMIT = 60.0
"""Time limit for a reachable broker to store a message in all its queues, in seconds."""


class Publisher:
    """Publish with confirms on one channel. The same message can be published again."""

    def __init__(
        self,
        connection: AbstractConnection,
        channel: AbstractChannel,
        *,
        waits: bool,
        declares: bool,
    ) -> None:
        self.connection = connection
        self.declares = declares
        self._channel = channel
        self._waits = waits
        self._blocked = False
        # The broker checks that `user_id` is the login.
        self._user = connection.url.user or "guest"  # type: ignore[attr-defined]

    @classmethod
    async def open(
        cls, connection: AbstractConnection, *, waits: bool = False, declares: bool = True
    ) -> Self:
        """Open the channel.

        Args:
            connection: to the broker.
            waits: whether to wait for a blocked broker, instead of raising Blocked.
            declares: whether missing parts of the topology may be declared.
        """
        with map_errors("opening a channel"):
            async with timeout(CALL_LIMIT):
                channel = connection.channel(on_return_raises=True)
                await channel.initialize()
        return cls(connection, channel, waits=waits, declares=declares)

    async def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        kind: str,
        message_id: str | None = None,
        headers: HeadersType | None = None,
        expiration: float | None = None,
        unroutable_fails: bool = False,
        content_type: str = "application/json",
    ) -> None:
        """Publish; return when the broker has stored the message in every queue that it reaches.

        The arguments are those of `outgoing`.

        Raises:
            Unreachable: the answer is not known; publish the same message again.
            Blocked: the broker accepts no messages.
            Unroutable: see `unroutable_fails`.
            Refused: no permission, or the exchange does not exist.
        """
        message = self.outgoing(
            exchange,
            key,
            body,
            kind=kind,
            message_id=message_id,
            headers=headers,
            expiration=expiration,
            unroutable_fails=unroutable_fails,
            content_type=content_type,
        )
        for error in await self.publish_all([message]):
            if error is not None:
                raise error

    def outgoing(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        kind: str,
        message_id: str | None = None,
        headers: HeadersType | None = None,
        expiration: float | None = None,
        unroutable_fails: bool = False,
        content_type: str = "application/json",
    ) -> Outgoing:
        """Return a message to publish.

        Args:
            exchange: the exchange's name.
            key: the routing key.
            body: the message's body.
            kind: the message's type.
            message_id: the message's id, unique among unconfirmed messages; default: a new one.
            headers: AMQP headers.
            expiration: the message's time to live in queues, in seconds.
            unroutable_fails: whether it is an error if the message reaches no queue.
            content_type: the body's type.
        """
        properties = Basic.Properties(
            content_type=content_type,
            headers=headers or None,
            delivery_mode=2,  # persistent
            expiration=None if expiration is None else str(int(expiration * 1000)),
            message_id=message_id or uuid.uuid4().hex,
            message_type=kind,
            user_id=self._user,
            app_id="pcm",
        )
        return Outgoing(exchange, key, body, properties, unroutable_fails)

    async def publish_all(self, messages: Iterable[Outgoing]) -> list[Unroutable | None]:
        """Publish messages together; return the error of each when the broker has answered for all.

        Raises:
            Unreachable, Blocked, Refused: as `publish` does; some may have been stored.
        """
        errors: list[Unroutable | None] = []
        for chunk in batch_publish.chunk_by_bytes(messages):
            errors += await self._publish(chunk)
        return errors

    async def _publish(self, messages: Sequence[Outgoing]) -> Iterable[Unroutable | None]:
        doing = f"publishing to {messages[0].exchange} as {messages[0].key}"
        while True:
            try:
                with map_errors(doing):
                    errors = await self._answers(messages, doing)
                    return list(map(_unroutable, messages, errors))
            except Unreachable as error:
                if not (
                    isinstance(error.__cause__, TimeoutError) and await blocked(self.connection)
                ):
                    raise
                reason = "the broker accepts no messages: is its disk space or memory low?"
                if not self._waits:
                    raise Blocked(reason) from error
                await self._wait_unblocked(reason)

    async def _answers(
        self, messages: Sequence[Outgoing], doing: str
    ) -> list[BaseException | None]:
        """Return the broker's answers; wait for them while the broker answers other calls.

        Thousands of queues take long; publishing again would take as long again.

        Raises:
            TimeoutError: the broker answers no other call either, or is blocked.
            Unreachable: a queue stores nothing, as a quorum queue without a majority of its nodes.
        """
        channel = await self._channel.get_underlay_channel()
        publishing = asyncio.create_task(
            batch_publish.publish_batch(cast("Channel", channel), messages)
        )
        started = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait({publishing}, timeout=CALL_LIMIT / 2)
                if done:
                    return publishing.result()
                if await blocked(self.connection):
                    raise TimeoutError
                if time.monotonic() - started > STORE_LIMIT:
                    raise Unreachable(f"{doing}: not stored in {STORE_LIMIT:.0f} s")
                async with timeout(CALL_LIMIT / 2), self.connection.channel():
                    pass
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _wait_unblocked(self, reason: str) -> None:
        """Wait until the broker accepts messages again, or the connection is lost."""
        from broker.log import get_logger  # only agents wait and log

        log = get_logger()
        if not self._blocked:  # logged once, for all waiting messages
            self._blocked = True
            log.warning("broker.blocked", reason=reason)
        await underlay(self.connection).ready()
        if self._blocked:
            self._blocked = False
            log.info("broker.unblocked")


def _unroutable(message: Outgoing, error: BaseException | None) -> Unroutable | None:
    if isinstance(error, PublishError):
        doing = f"publishing to {message.exchange} as {message.key}"
        return Unroutable(f"{doing}: no queue is bound")
    if error is not None:
        raise error
    return None
