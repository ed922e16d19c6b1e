"""Publish many messages in one write, and collect the broker's confirms.

aiormq publishes one message at a time, with a lock, a timer and, for several in flight, a task
each. That costs more than the message itself.
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

_CHUNK_BYTES = 1024 * 1024


class Outgoing(NamedTuple):
    """A message to publish.

    Its message id must be unique among the unconfirmed messages of its channel: a returned message
    is identified by nothing else.
    """

    exchange: str
    key: str
    body: bytes
    properties: Basic.Properties
    unroutable_fails: bool


def chunk_by_bytes(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Split messages into chunks that a slow connection sends within the time limit."""
    chunk: list[Outgoing] = []
    size = 0
    for message in messages:
        if chunk and size + len(message.body) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += len(message.body)
    if chunk:
        yield chunk


class _Confirmation:
    """The broker's answer for one message; it has the methods of a future that aiormq calls.

    A future would schedule its callback on the loop, for each message.
    """

    __slots__ = ("_on_answer", "error")

    def __init__(self, on_answer: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self.error: BaseException | None = None

    def done(self) -> bool:
        return False  # aiormq sets it once

    def set_result(self, _: object) -> None:
        self._on_answer()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self._on_answer()


async def publish_batch(
    channel: Channel, messages: Sequence[Outgoing]
) -> list[BaseException | None]:
    """Publish messages in order, and wait until the broker has answered for each.

    Returns:
        The error of each message: None, `PublishError` or `DeliveryError`.

    Raises:
        BaseException: the error that closed the channel; no answer is known.
    """
    unanswered = len(messages)
    # aiormq ends the channel's futures when the channel closes.
    all_answered = channel.create_future()

    def on_answer() -> None:
        nonlocal unanswered
        unanswered -= 1
        if not unanswered and not all_answered.done():
            all_answered.set_result(None)

    answers = [_Confirmation(on_answer) for _ in messages]
    tags: dict[str, int] = {}
    try:
        async with channel.lock:
            payload = b"".join(_frames(channel, messages))
            # With it the writer waits for a full socket.
            drained = asyncio.get_running_loop().create_future()
            frames = ChannelFrame(payload, should_close=False, drain_future=drained)
            await channel.write_queue.put(frames)
            # No await from here to the end of the block: no answer arrives before its entry.
            for message, answer in zip(messages, answers, strict=True):
                channel.delivery_tag += 1
                channel.confirmations[channel.delivery_tag] = answer  # type: ignore[assignment]
                if message.unroutable_fails:
                    tags[message.properties.message_id or ""] = channel.delivery_tag
            channel.message_id_delivery_tag.update(tags)
        await all_answered
        return [answer.error for answer in answers]
    finally:
        for message_id, tag in tags.items():
            if channel.message_id_delivery_tag.get(message_id) == tag:
                del channel.message_id_delivery_tag[message_id]
        all_answered.cancel()


def _frames(channel: Channel, messages: Sequence[Outgoing]) -> Iterator[bytes]:
    max_size = channel.max_content_size
    for message in messages:
        header = ContentHeader(properties=message.properties, body_size=len(message.body))
        yield _publish_method(
            message.exchange, message.key, message.unroutable_fails, channel.number
        )
        yield marshal(header, channel.number)
        for start in range(0, len(message.body), max_size):
            yield marshal(ContentBody(message.body[start : start + max_size]), channel.number)


@lru_cache(maxsize=256)
def _publish_method(exchange: str, key: str, mandatory: bool, number: int) -> bytes:  # noqa: FBT001
    method = Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return marshal(method, number)
