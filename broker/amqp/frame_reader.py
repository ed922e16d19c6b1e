"""Read frames from a connection's buffer for the library's connection.

The library reads each frame by three calls under a lock. When many frames arrive together, that
takes longer than the rest of reading.
"""

import asyncio

import aiormq
from aio_pika.abc import UnderlayConnection
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import (
    AMQPConnectionError,
    ConnectionClosed,
    ConnectionNotAllowed,
    InvalidFrameError,
)
from pamqp.base import Frame
from pamqp.commands import Connection
from pamqp.constants import FRAME_HEADER_SIZE
from pamqp.exceptions import PAMQPException
from pamqp.frame import FrameTypes
from yarl import URL

from broker.amqp.codec import decode_frame

_END = 1
_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530


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


class _Handshake(FrameReceiver):
    """Reads the answers of the handshake; an answer that closes the connection is an error."""

    def __init__(self, receiver: FrameReceiver) -> None:
        super().__init__(receiver.reader)
        self._receiver = receiver

    async def get_frame(self) -> ReceivedFrame:
        """Return the next frame.

        Raises:
            ConnectionNotAllowed: the broker refuses the virtual host.
            ConnectionClosed: it closes the connection for another reason than the login.
        """
        received = await self._receiver.get_frame()
        _, _, frame = received
        if isinstance(frame, Connection.Close) and frame.reply_code != _ACCESS_REFUSED:
            refused = frame.reply_code == _NOT_ALLOWED
            kind = ConnectionNotAllowed if refused else ConnectionClosed
            raise kind(frame.reply_code, frame.reply_text)
        return received


class _AmqpConnection(aiormq.Connection):
    """A connection whose reader loop takes its frames from a `FrameReader`."""

    local_address = ""
    """This machine's address on the connection."""

    @staticmethod
    async def _rpc(
        request: Frame,
        writer: asyncio.StreamWriter,
        frame_receiver: FrameReceiver,
        wait_response: bool = True,  # noqa: FBT001, FBT002 - the library's signature
    ) -> FrameTypes | None:
        # The library takes the refusal of a virtual host for an invalid frame.
        answers = _Handshake(frame_receiver)
        return await aiormq.Connection._rpc(request, writer, answers, wait_response)  # noqa: SLF001

    async def _Connection__reader(self, receiver: FrameReceiver) -> None:  # noqa: N802 - the loop
        # The handshake is over; only frames follow.
        transport = receiver.reader._transport  # type: ignore[attr-defined] # noqa: SLF001
        self.local_address, *_ = transport.get_extra_info("sockname")
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
