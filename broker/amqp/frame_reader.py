"""Read frames from a connection's buffer for the library's connection.

The library reads each frame by three calls under a lock. When many frames arrive together, that
takes longer than the rest of reading.
"""

import asyncio

import aiormq
from aio_pika.abc import UnderlayConnection
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.constants import FRAME_HEADER_SIZE
from pamqp.exceptions import PAMQPException
from yarl import URL

from broker.amqp.codec import decode_frame

_END = 1


class FrameReader(FrameReceiver):
    """Take a complete frame from the buffer, or wait for it."""

    async def get_frame(self) -> ReceivedFrame:
        """Return the next frame.

        Raises:
            AMQPConnectionError: the connection ended.
            InvalidFrameError: the data is not AMQP.
            StopAsyncIteration: the connection is at its end.
        """
        reader = self.reader
        arrived: bytearray = reader._buffer  # type: ignore[attr-defined] # noqa: SLF001
        size = FRAME_HEADER_SIZE + int.from_bytes(arrived[3:FRAME_HEADER_SIZE], "big") + _END
        if len(arrived) >= size:
            frame = bytes(arrived[:size])
            del arrived[:size]
            reader._maybe_resume_transport()  # type: ignore[attr-defined] # noqa: SLF001
        elif reader.at_eof():
            raise StopAsyncIteration
        else:
            frame = await _wait_for_frame(reader)
        try:
            return decode_frame(frame)
        except PAMQPException as error:
            raise InvalidFrameError(str(error)) from error


async def _wait_for_frame(reader: asyncio.StreamReader) -> bytes:
    try:
        header = await reader.readexactly(FRAME_HEADER_SIZE)
        return header + await reader.readexactly(int.from_bytes(header[3:], "big") + _END)
    except asyncio.IncompleteReadError as error:
        raise AMQPConnectionError("the broker closed the connection") from error
    except OSError as error:
        raise AMQPConnectionError(str(error)) from error


class _AmqpConnection(aiormq.Connection):
    """A connection whose reader loop takes its frames from a `FrameReader`."""

    async def _Connection__reader(self, receiver: FrameReceiver) -> None:  # noqa: N802 - the loop
        # The handshake is over; only frames follow.
        await super()._Connection__reader(FrameReader(receiver.reader))  # type: ignore[misc]


class Transport(UnderlayConnection):
    """The transport of `OurConnection`."""

    @classmethod
    async def make_connection(
        cls,
        url: URL,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        **options: object,
    ) -> aiormq.abc.AbstractConnection:
        """Open a connection; see `UnderlayConnection`."""
        connection = _AmqpConnection(url, **options)  # type: ignore[arg-type]
        await asyncio.wait_for(connection.connect(), timeout)
        await connection.ready()
        return connection
