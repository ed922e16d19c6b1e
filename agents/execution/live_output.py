"""The output of a running command, streamed to the windows that show it.

The last part is buffered, so that a reader that joins later gets the output from the oldest kept
byte on. A reader that is too slow gets the number of bytes that it missed.
"""

import asyncio
import codecs
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.execution.output import STREAMS
from agents.execution.spool import read_spool, spool_end
from broker.amqp.timeouts import timeout
from schemas import Output, Result

_MAX_BYTES = 1024 * 1024
_MAX_LINES = 20_000  # also the limit of pieces
_PIECE_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024
_PAUSE = 0.05  # seconds for which output is collected
_POLL = 0.25

Line = dict[str, Any]
Stream = AsyncGenerator[Line, None]


@dataclass
class _Piece:
    stream: str
    data: bytearray
    lines: int


@dataclass(frozen=True)
class LiveRead:
    """The result of one read.

    Attributes:
        dropped: bytes that the reader missed.
        pieces: the bytes that follow, each with the name of its stream.
        end: the offset of the next read.
        complete: whether no more output follows.
    """

    dropped: int
    pieces: list[tuple[str, bytes]]
    end: int
    complete: bool


class LiveOutput:
    """A buffer of the last output of a command, addressed by byte offset."""

    def __init__(self, spool: Path | None = None) -> None:
        """Create an empty buffer; read the files in `spool` if the command writes there."""
        self._spool = spool
        self._offsets = dict.fromkeys(STREAMS, 0)
        self._pieces: deque[_Piece] = deque()
        self._begin = 0
        self._end = 0
        self._lines = 0
        self._closed = False
        self._more = asyncio.Event()

    def write(self, stream: str, data: bytes) -> None:
        """Add the bytes that were written to a stream."""
        for start in range(0, len(data), _PIECE_BYTES):
            self._append(stream, data[start : start + _PIECE_BYTES])
        self._more.set()

    def _append(self, stream: str, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.stream != stream or len(last.data) + len(data) > _PIECE_BYTES:
            last = _Piece(stream, bytearray(), 0)
            self._pieces.append(last)
        count = data.count(b"\n")
        last.data += data
        last.lines += count
        self._lines += count
        self._end += len(data)
        while (
            self._end - self._begin > _MAX_BYTES
            or self._lines > _MAX_LINES
            or len(self._pieces) > _MAX_LINES
        ):
            first = self._pieces.popleft()
            self._begin += len(first.data)
            self._lines -= first.lines

    def close(self) -> None:
        """Mark the output as complete."""
        self._read_spool_files()
        self._closed = True
        self._more.set()

    def read(self, start: int) -> LiveRead:
        """Return the output from byte `start` on, or from the oldest kept byte."""
        self._read_spool_files()
        dropped = max(0, self._begin - start)
        start += dropped
        pieces: list[tuple[str, bytes]] = []
        end, offset = start, self._begin
        for piece in self._pieces:
            piece_end = offset + len(piece.data)
            if piece_end > start:
                pieces.append((piece.stream, bytes(piece.data[max(0, start - offset) :])))
                end = piece_end
            offset = piece_end
            if end - start >= _READ_BYTES:
                break
        return LiveRead(dropped, pieces, end, self._closed and end == self._end)

    async def more(self, end: int) -> None:
        """Wait until there is output after byte `end`."""
        if self._end > end or self._closed:
            return
        self._more.clear()
        with suppress(TimeoutError):  # writes to the spool files send no event
            async with timeout(None if self._spool is None else _POLL):
                await self._more.wait()

    def _read_spool_files(self) -> None:
        """Read the new bytes of the spool files."""
        if self._spool is None or self._closed:
            return
        for stream in STREAMS:
            with suppress(OSError):
                end = spool_end(self._spool, stream)
                start = max(self._offsets[stream], end - _MAX_BYTES // 2)
                begin, data = read_spool(self._spool, stream, start, _MAX_BYTES)
                if begin > self._offsets[stream]:
                    self._skip(begin - self._offsets[stream])
                self._offsets[stream] = begin + len(data)
                self.write(stream, data)

    def _skip(self, count: int) -> None:
        """Count bytes that are not read, and drop the pieces before them."""
        self._pieces.clear()
        self._lines = 0
        self._end += count
        self._begin = self._end


async def follow_live_output(live: LiveOutput) -> Stream:
    """Yield the output of a command, from the oldest kept byte to its end."""
    decoders = _decoders()
    end = 0
    while True:
        part = live.read(end)
        if part.dropped:
            decoders = _decoders()
            yield {"dropped": part.dropped}
        for stream, data in part.pieces:
            if text := decoders[stream].decode(data):
                yield {"stream": stream, "text": text}
        end = part.end
        if part.complete:
            break
        if not part.pieces:
            await live.more(end)
        await asyncio.sleep(0 if part.pieces else _PAUSE)
    for stream, decoder in decoders.items():
        if text := decoder.decode(b"", final=True):
            yield {"stream": stream, "text": text}


def _decoders() -> dict[str, codecs.IncrementalDecoder]:
    return {name: codecs.getincrementaldecoder("utf-8")("replace") for name in STREAMS}


def stored(result: Result | None) -> Iterator[Line]:
    """Yield the recorded output of a command that has ended."""
    if result is not None:
        yield from _stored("stdout", result.stdout)
        yield from _stored("stderr", result.stderr)


def _stored(stream: str, output: Output) -> Iterator[Line]:
    yield from _texts(stream, output.head)
    if output.dropped:
        yield {"dropped": output.dropped}
        yield from _texts(stream, output.tail)


def _texts(stream: str, data: bytes) -> Iterator[Line]:
    text = data.decode(errors="replace")
    for start in range(0, len(text), _READ_BYTES):
        yield {"stream": stream, "text": text[start : start + _READ_BYTES]}
