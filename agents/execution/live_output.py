"""What a running command writes, as it comes, for those who look on.

The last of it is kept, so that whoever comes later sees what there is from the beginning on, as far
as that is kept, and whoever reads too slowly is told how much they missed.
"""

import asyncio
import codecs
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.execution.output import SPOOL_FILES
from broker.amqp.timeouts import timeout
from schemas import Output, Result

_BYTES = 1024 * 1024
_LINES = 20_000  # and no more pieces than that
_PIECE = 16 * 1024
_AT_ONCE = 64 * 1024
_PAUSE = 0.05  # seconds in which what comes is gathered
_POLL = 0.25

Line = dict[str, Any]
Stream = AsyncGenerator[Line, None]


@dataclass
class _Piece:
    stream: str
    data: bytearray
    lines: int


@dataclass(frozen=True)
class Seen:
    """What a reader gets: how much it missed, what follows, where that ends; if that is all."""

    dropped: int
    pieces: list[tuple[str, bytes]]
    end: int
    all: bool


class LiveOutput:
    """The last that a command wrote, by how many bytes came before it."""

    def __init__(self, spool: Path | None = None) -> None:
        """Keep what is written; with `spool` a command that survives its agent writes there."""
        self._spool = spool
        self._read_to = dict.fromkeys(SPOOL_FILES, 0)
        self._pieces: deque[_Piece] = deque()
        self._begin = 0
        self._end = 0
        self._lines = 0
        self._closed = False
        self._more = asyncio.Event()

    def write(self, stream: str, data: bytes) -> None:
        """Take in what was written to a stream."""
        for start in range(0, len(data), _PIECE):
            self._append(stream, data[start : start + _PIECE])
        self._more.set()

    def _append(self, stream: str, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.stream != stream or len(last.data) + len(data) > _PIECE:
            last = _Piece(stream, bytearray(), 0)
            self._pieces.append(last)
        count = data.count(b"\n")
        last.data += data
        last.lines += count
        self._lines += count
        self._end += len(data)
        while (
            self._end - self._begin > _BYTES or self._lines > _LINES or len(self._pieces) > _LINES
        ):
            first = self._pieces.popleft()
            self._begin += len(first.data)
            self._lines -= first.lines

    def close(self) -> None:
        """Note that nothing more comes."""
        self._take_spooled()
        self._closed = True
        self._more.set()

    def read(self, start: int) -> Seen:
        """Return what follows the first `start` bytes, as far as it is kept."""
        self._take_spooled()
        dropped = max(0, self._begin - start)
        start += dropped
        pieces: list[tuple[str, bytes]] = []
        end, at = start, self._begin
        for piece in self._pieces:
            following = at + len(piece.data)
            if following > start:
                pieces.append((piece.stream, bytes(piece.data[max(0, start - at) :])))
                end = following
            at = following
            if end - start >= _AT_ONCE:
                break
        return Seen(dropped, pieces, end, self._closed and end == self._end)

    async def more(self, end: int) -> None:
        """Wait for what follows the first `end` bytes."""
        if self._end > end or self._closed:
            return
        self._more.clear()
        with suppress(TimeoutError):  # nobody tells of what is written to files
            async with timeout(None if self._spool is None else _POLL):
                await self._more.wait()

    def _take_spooled(self) -> None:
        """Take in what is new in the files that the command writes to."""
        if self._spool is None or self._closed:
            return
        for stream in SPOOL_FILES:
            with suppress(OSError), (self._spool / stream).open("rb") as file:
                missed = os.fstat(file.fileno()).st_size - self._read_to[stream] - _BYTES // 2
                if missed > 0:
                    self._skip(missed)
                    self._read_to[stream] += missed
                file.seek(self._read_to[stream])
                data = file.read(_BYTES)
                self._read_to[stream] += len(data)
                self.write(stream, data)

    def _skip(self, count: int) -> None:
        """Count what is not taken in; what came before it is not kept either."""
        self._pieces.clear()
        self._lines = 0
        self._end += count
        self._begin = self._end


async def follow(live: LiveOutput) -> Stream:
    """Yield what a command writes from its beginning, as far as kept, to its end."""
    decoders = _decoders()
    end = 0
    while True:
        seen = live.read(end)
        if seen.dropped:
            decoders = _decoders()
            yield {"dropped": seen.dropped}
        for stream, data in seen.pieces:
            if text := decoders[stream].decode(data):
                yield {"stream": stream, "text": text}
        end = seen.end
        if seen.all:
            break
        if not seen.pieces:
            await live.more(end)
        await asyncio.sleep(0 if seen.pieces else _PAUSE)
    for stream, decoder in decoders.items():
        if text := decoder.decode(b"", final=True):
            yield {"stream": stream, "text": text}


def _decoders() -> dict[str, codecs.IncrementalDecoder]:
    return {name: codecs.getincrementaldecoder("utf-8")("replace") for name in SPOOL_FILES}


def stored(result: Result | None) -> Iterator[Line]:
    """Yield what is kept of the output of a command that has ended."""
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
    for start in range(0, len(text), _AT_ONCE):
        yield {"stream": stream, "text": text[start : start + _AT_ONCE]}
