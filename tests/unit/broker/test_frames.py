"""Frames are read alike however they are fragmented; a broken one is an error."""

import asyncio

import pytest
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import FrameTypes, marshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from broker.amqp.frame_reader import FrameReader
from tests.support.waiting import LIMIT

FRAMES: list[FrameTypes] = [
    commands.Basic.Deliver("tag", 7, False, "pcm.jobs", "background.mandatory.all"),  # noqa: FBT003
    ContentHeader(body_size=5, properties=commands.Basic.Properties(message_id="one")),
    ContentBody(b"hello"),
    Heartbeat(),
    ContentBody(b"\xce" * 70_000),
]
WIRE = b"".join(marshal(frame, 3) for frame in FRAMES)
EMPTY = b"\x01\x00\x03\x00\x00\x00\x00\xce"


def said(frames: list[FrameTypes]) -> list[tuple[str, object]]:
    return [(type(frame).__name__, getattr(frame, "value", None)) for frame in frames]


async def read(reader: asyncio.StreamReader, count: int) -> list[FrameTypes]:
    receiver = FrameReader(reader)
    async with asyncio.timeout(LIMIT):
        return [(await receiver.get_frame())[2] for _ in range(count)]


async def test_frames_that_come_together_are_read_in_their_order() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(WIRE * 3)
    assert said(await read(reader, 3 * len(FRAMES))) == said(FRAMES * 3)


@pytest.mark.parametrize("size", [1, 2, 6, 7, 8, 13, 4096])
async def test_frames_that_come_in_pieces_are_read_alike(size: int) -> None:
    reader = asyncio.StreamReader()

    async def feed() -> None:
        small = WIRE[:-60_000] if size < 8 else WIRE
        for start in range(0, len(small), size):
            reader.feed_data(small[start : start + size])
            await asyncio.sleep(0)
        reader.feed_data(WIRE[len(small) :])

    found, _ = await asyncio.gather(read(reader, len(FRAMES)), feed())
    assert said(found) == said(FRAMES)


@pytest.mark.parametrize(
    "broken", [EMPTY, marshal(ContentBody(b"x"), 3)[:-1] + b"?"], ids=["empty", "no end"]
)
async def test_a_broken_frame_is_reported(broken: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(marshal(ContentBody(b"good"), 3) + broken)
    with pytest.raises(InvalidFrameError):
        await read(reader, 2)


async def test_a_frame_that_does_not_come_to_its_end_is_reported() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(marshal(ContentBody(b"good"), 3) + WIRE[:10])
    reader.feed_eof()
    with pytest.raises(AMQPConnectionError):
        await read(reader, 2)
