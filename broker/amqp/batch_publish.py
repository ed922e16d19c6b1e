"""Publishes messages on a channel, however many in one write, and hears what became of each.

The library's own way is a message at a time, each with a turn of the channel, a timer and, where
many are to be on the way, a task: that costs more than the message.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

_SHARE = 1024 * 1024  # bytes


class Outgoing(NamedTuple):
    """A message on its way out.

    The message id in its properties is that of no other on the way on its channel: by it alone
    is told which one came back.
    """

    exchange: str
    key: str
    body: bytes
    properties: Basic.Properties
    unroutable_fails: bool


def shares(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Yield messages in shares that are no more than a slow connection carries in good time."""
    share: list[Outgoing] = []
    size = 0
    for message in messages:
        if share and size + len(message.body) > _SHARE:
            yield share
            share, size = [], 0
        share.append(message)
        size += len(message.body)
    if share:
        yield share


class _Answer:
    """What the broker answers for one message, told by the library as it would tell a future.

    A future would call back in a turn of its own, for each of many.
    """

    __slots__ = ("_told", "error")

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self.error: BaseException | None = None

    def done(self) -> bool:
        return False  # the library tells it once

    def set_result(self, _: object) -> None:
        self._told()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self._told()


async def publish(channel: Channel, messages: Sequence[Outgoing]) -> list[BaseException | None]:
    """Publish messages in their order, and wait until the broker has answered for each.

    Returns:
        What is wrong with each: nothing, `PublishError` or `DeliveryError`.

    Raises:
        BaseException: what ended the channel meanwhile; then none of the answers is known.
    """
    left = len(messages)
    # Of those that the library ends with the channel.
    all_answered = channel.create_future()

    def told() -> None:
        nonlocal left
        left -= 1
        if not left and not all_answered.done():
            all_answered.set_result(None)

    answers = [_Answer(told) for _ in messages]
    known: dict[str, int] = {}
    try:
        async with channel.lock:
            payload = b"".join(_frames(channel, messages))
            # That future lets the writer wait for a socket that is full, and so us for the writer.
            drained = asyncio.get_running_loop().create_future()
            written = ChannelFrame(payload, should_close=False, drain_future=drained)
            await channel.write_queue.put(written)
            # From here to the end of the block nothing else runs: no answer comes too early.
            for message, answer in zip(messages, answers, strict=True):
                channel.delivery_tag += 1
                channel.confirmations[channel.delivery_tag] = answer  # type: ignore[assignment]
                if message.unroutable_fails:
                    known[message.properties.message_id or ""] = channel.delivery_tag
            channel.message_id_delivery_tag.update(known)
        await all_answered
        return [answer.error for answer in answers]
    finally:
        for message_id, tag in known.items():
            if channel.message_id_delivery_tag.get(message_id) == tag:
                del channel.message_id_delivery_tag[message_id]
        all_answered.cancel()


def _frames(channel: Channel, messages: Sequence[Outgoing]) -> Iterator[bytes]:
    most = channel.max_content_size
    for message in messages:
        header = ContentHeader(properties=message.properties, body_size=len(message.body))
        yield _method(message.exchange, message.key, message.unroutable_fails, channel.number)
        yield marshal(header, channel.number)
        for start in range(0, len(message.body), most):
            yield marshal(ContentBody(message.body[start : start + most]), channel.number)


@lru_cache(maxsize=256)
def _method(exchange: str, key: str, mandatory: bool, number: int) -> bytes:  # noqa: FBT001
    method = Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return marshal(method, number)
