"""How messages go out: published, and confirmed by the broker before it is said that they are."""

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self, cast

from aio_pika.abc import AbstractChannel, AbstractConnection, HeadersType
from aio_pika.exceptions import PublishError
from pamqp.commands import Basic

from broker.amqp import batch_publish as pipeline
from broker.amqp.connection import (
    CALL_LIMIT,
    Blocked,
    Unreachable,
    Unroutable,
    blocked,
    translated,
    underlay,
)
from broker.amqp.timeouts import timeout

if TYPE_CHECKING:
    from aiormq.channel import Channel


STORE_LIMIT = 60.0
"""Seconds that a broker which is there may take to store a message in all the queues it is for."""


class Publisher:
    """Publishes with confirms on one channel; the same message may be published again."""

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
        # Checked by the broker against the login: who says that this happened.
        self._user = connection.url.user or "guest"  # type: ignore[attr-defined]

    @classmethod
    async def open(
        cls, connection: AbstractConnection, *, waits: bool = False, declares: bool = True
    ) -> Self:
        """Open the channel.

        Args:
            connection: to the broker.
            waits: whether a broker that takes no messages is waited for, not given up.
            declares: whether what is missing of the topology may be made again.
        """
        with translated("opening a channel"):
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
        """Publish, and return once the broker has stored the message in every queue it reaches.

        The arguments are those of `outgoing`.

        Raises:
            Unreachable: the answer is not known; publish the same message again.
            Blocked: the broker takes no messages.
            Unroutable: see `unroutable_fails`.
            Refused: no permission, or there is no such exchange.
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
    ) -> pipeline.Outgoing:
        """Return a message that can be published.

        Args:
            exchange: to which exchange.
            key: under which routing key.
            body: what.
            kind: the kind of message.
            message_id: its id, if it has one; no two of the same are on the way at the same time.
            headers: AMQP headers.
            expiration: seconds for which queues keep it.
            unroutable_fails: whether it is an error where it reaches no queue.
            content_type: of the body.
        """
        properties = Basic.Properties(
            content_type=content_type,
            headers=headers or None,
            delivery_mode=2,  # survives the broker's restart
            expiration=None if expiration is None else str(int(expiration * 1000)),
            message_id=message_id or uuid.uuid4().hex,
            message_type=kind,
            user_id=self._user,
            app_id="pcm",
        )
        return pipeline.Outgoing(exchange, key, body, properties, unroutable_fails)

    async def publish_all(self, messages: Iterable[pipeline.Outgoing]) -> list[Unroutable | None]:
        """Publish messages at once; return, when the broker has answered for all, what was wrong.

        Raises:
            Unreachable, Blocked, Refused: as `publish` does; it may be so of some alone.
        """
        errors: list[Unroutable | None] = []
        for share in pipeline.shares(messages):
            errors += await self._publish(share)
        return errors

    async def _publish(self, messages: Sequence[pipeline.Outgoing]) -> Iterable[Unroutable | None]:
        doing = f"publishing to {messages[0].exchange} as {messages[0].key}"
        while True:
            try:
                with translated(doing):
                    errors = await self._answers(messages, doing)
                    return list(map(_unroutable, messages, errors))
            except Unreachable as error:
                if not (
                    isinstance(error.__cause__, TimeoutError) and await blocked(self.connection)
                ):
                    raise
                reason = "the broker takes no messages: is its disk or its memory low?"
                if not self._waits:
                    raise Blocked(reason) from error
                await self._outwait(reason)

    async def _answers(
        self, messages: Sequence[pipeline.Outgoing], doing: str
    ) -> list[BaseException | None]:
        """Return the broker's answers, waited for as long as it is there.

        For thousands of queues it takes its time; published again, it would take that again.

        Raises:
            TimeoutError: it does not answer a simple question either, or takes no messages.
            Unreachable: it is there, and a queue stores nothing: most of its nodes are away, say.
        """
        channel = await self._channel.get_underlay_channel()
        publishing = asyncio.create_task(pipeline.publish(cast("Channel", channel), messages))
        began = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait({publishing}, timeout=CALL_LIMIT / 2)
                if done:
                    return publishing.result()
                if await blocked(self.connection):
                    raise TimeoutError
                if time.monotonic() - began > STORE_LIMIT:
                    raise Unreachable(f"{doing}: not stored in {STORE_LIMIT:.0f} s")
                async with timeout(CALL_LIMIT / 2), self.connection.channel():
                    pass
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _outwait(self, reason: str) -> None:
        """Wait until messages are taken again, or the connection is lost."""
        from broker.log import get_logger  # only agents wait, and log

        log = get_logger()
        if not self._blocked:  # told once, however many messages wait
            self._blocked = True
            log.warning("broker.blocked", reason=reason)
        await underlay(self.connection).ready()
        if self._blocked:
            self._blocked = False
            log.info("broker.unblocked")


def _unroutable(message: pipeline.Outgoing, error: BaseException | None) -> Unroutable | None:
    if isinstance(error, PublishError):
        doing = f"publishing to {message.exchange} as {message.key}"
        return Unroutable(f"{doing}: it reaches no queue")
    if error is not None:
        raise error
    return None
