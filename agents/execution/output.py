"""Capture the output of a command: all of it, or its beginning and its end."""

import asyncio
import os
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl

from schemas import Output

_CHUNK = 64 * 1024  # bytes a read, so that much output does not block the event loop
_SMALL = 4096
_GATHER = 0.005  # seconds for which small pieces are collected
STREAMS = ("stdout", "stderr")
"""The names of a command's outputs."""


class Capture:
    """Keeps the beginning and the end of the output, each half of the limit."""

    def __init__(self, limit: int, on_data: Callable[[bytes], object] | None = None) -> None:
        """Keep at most `limit` bytes, and pass all bytes on to `on_data` immediately."""
        self._on_data = on_data
        self._limit = limit
        self._half = limit // 2
        self._head = bytearray()
        self._rest = bytearray()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Add output."""
        if self._on_data is not None and data:
            self._on_data(data)
        self._size += len(data)
        room = self._limit - len(self._head)
        self._head += data[:room]
        self._rest += data[room:]
        if len(self._rest) > 8 * self._limit:
            del self._rest[: len(self._rest) - self._limit]

    def skip(self, count: int) -> None:
        """Count output that is not passed to `write`."""
        self._size += count

    def output(self) -> Output:
        """Return the kept output, cut between characters so that text stays valid."""
        if self._size <= self._limit:
            return Output(head=bytes(self._head))
        head = bytes(self._head[: self._half])
        kept = bytes(self._head[self._half :] + self._rest)
        tail = kept[len(kept) - self._half :]
        for _ in range(3):
            if head and not _decodes(head):
                head = head[:-1]
            if tail and not _decodes(tail):
                tail = tail[1:]
        return Output(head=head, dropped=self._size - len(head) - len(tail), tail=tail)


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class PipeReader:
    """Reads a command's pipe in the event loop.

    Small pieces are collected: a command that writes line by line would wake the loop too often.
    """

    def __init__(self, file: int, capture: Capture, on_read: Callable[[], object]) -> None:
        """Write the data to `capture` once opened; call `on_read` after each read."""
        self._file = file
        self._capture = capture
        self._on_read = on_read
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start reading."""
        self.close()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._read, self._loop)

    def close(self) -> None:
        """Stop reading; the caller closes the file."""
        if self._loop is not None:
            self._loop.remove_reader(self._file)
        if self._timer is not None:
            self._timer.cancel()

    def drain(self) -> None:
        """Read the available bytes; do not wait for processes that still hold the pipe."""
        if available := unread(self._file):
            self._capture.write(os.read(self._file, available))

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        data = os.read(self._file, _CHUNK)
        self._capture.write(data)
        self._on_read()
        if len(data) < _SMALL:
            loop.remove_reader(self._file)
            if data:  # not the end of the pipe
                self._timer = loop.call_later(_GATHER, self.open)


def unread(pipe: int) -> int:
    """Return the number of bytes in a pipe."""
    return int.from_bytes(ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
