"""Publishes messages on a channel, however many in one write, and hears what became of each.

The library's own way is a message at a time, each with a turn of the channel, a timer and, where
many are to be on the way, a task: that costs more than the message.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
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


async def publish(channel: Channel, messages: Sequence[Outgoing]) -> list[BaseException | None]:
    """Publish messages in their order, and wait until the broker has answered for each.

    Returns:
        What is wrong with each: nothing, `PublishError` or `DeliveryError`.

    Raises:
        BaseException: what ended the channel meanwhile; then none of the answers is known.
    """
    loop = asyncio.get_running_loop()
    answers = [loop.create_future() for _ in messages]
    left = len(answers)
    # Of those that the library ends with the channel.
    all_answered = channel.create_future()
    known: dict[str, int] = {}

    def answered(_: asyncio.Future[object]) -> None:
        nonlocal left
        left -= 1
        if not left and not all_answered.done():
            all_answered.set_result(None)

    try:
        async with channel.lock:
            payload = b"".join(_frames(channel, messages))
            # That future lets the writer wait for a socket that is full, and so us for the writer.
            written = ChannelFrame(payload, should_close=False, drain_future=loop.create_future())
            await channel.write_queue.put(written)
            # From here to the end of the block nothing else runs: no answer comes too early.
            for message, answer in zip(messages, answers, strict=True):
                channel.delivery_tag += 1
                channel.confirmations[channel.delivery_tag] = answer
                answer.add_done_callback(answered)
                if message.unroutable_fails:
                    known[message.properties.message_id or ""] = channel.delivery_tag
            channel.message_id_delivery_tag.update(known)
        await all_answered
        return [answer.exception() for answer in answers]
    finally:
        for message_id, tag in known.items():
            if channel.message_id_delivery_tag.get(message_id) == tag:
                del channel.message_id_delivery_tag[message_id]
        for future in (all_answered, *answers):
            future.cancel()


def _frames(channel: Channel, messages: Sequence[Outgoing]) -> Iterator[bytes]:
    most = channel.max_content_size
    for message in messages:
        method = Basic.Publish(
            exchange=message.exchange, routing_key=message.key, mandatory=message.unroutable_fails
        )
        header = ContentHeader(properties=message.properties, body_size=len(message.body))
        yield marshal(method, channel.number)
        yield marshal(header, channel.number)
        for start in range(0, len(message.body), most):
            yield marshal(ContentBody(message.body[start : start + most]), channel.number)
