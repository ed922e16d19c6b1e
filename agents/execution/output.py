"""What a command wrote: all of it, or its beginning and its end."""

import asyncio
import os
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

from agents.platforms import NO_FILES
from schemas import Output

_CHUNK = 64 * 1024  # bytes read at a time, so that a flood leaves the event loop time for others
_SMALL = 4096
_GATHER = 0.005  # seconds in which small pieces are gathered
_OPEN_LIMIT = 10.0
_POLL = 0.02
SPOOL_FILES = ("stdout", "stderr")
"""What a command that survives its agent writes to, in a folder of its own."""


class Capture:
    """Keeps the beginning and the end of what is written to it, each half of the limit."""

    def __init__(self, limit: int, heard: Callable[[bytes], object] | None = None) -> None:
        """Keep what is written, and hand it on to `heard` as it comes."""
        self._heard = heard
        self._limit = limit
        self._half = limit // 2
        self._head = bytearray()
        self._rest = bytearray()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take in what was written."""
        if self._heard is not None and data:
            self._heard(data)
        self._size += len(data)
        room = self._limit - len(self._head)
        self._head += data[:room]
        self._rest += data[room:]
        if len(self._rest) > 8 * self._limit:
            del self._rest[: len(self._rest) - self._limit]

    def skip(self, count: int) -> None:
        """Count what was written, but is not given."""
        self._size += count

    def output(self) -> Output:
        """Return what was kept; cut between characters, so that text stays text."""
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


class Inlet:
    """A pipe that a command writes to, read by the event loop as it comes.

    Small pieces are gathered: who writes line by line would keep the loop busy with waking up.
    """

    def __init__(self, file: int, capture: Capture, taken: Callable[[], object]) -> None:
        """Give what is read, once it is open, to `capture`; then call `taken`, each time."""
        self._file = file
        self._capture = capture
        self._taken = taken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Read from now on."""
        self.close()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._take, self._loop)

    def close(self) -> None:
        """Read no more; the file is the caller's to close."""
        if self._loop is not None:
            self._loop.remove_reader(self._file)
        if self._timer is not None:
            self._timer.cancel()

    def drain(self) -> None:
        """Take what is there now, and wait for nobody who may still hold the pipe."""
        there = int.from_bytes(ioctl(self._file, termios.FIONREAD, bytes(4)), sys.byteorder)
        if there:
            self._capture.write(os.read(self._file, there))

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        data = os.read(self._file, _CHUNK)
        self._capture.write(data)
        self._taken()
        if len(data) < _SMALL:
            loop.remove_reader(self._file)
            if data:  # not its end
                self._timer = loop.call_later(_GATHER, self.open)


async def spooled(spool: Path, limit: int) -> tuple[Output, Output]:
    """Return what a command wrote to the files of its spool folder."""
    stdout, stderr = [await _file_output(spool / name, limit) for name in SPOOL_FILES]
    return stdout, stderr


async def _file_output(path: Path, limit: int) -> Output:
    capture = Capture(limit)
    deadline = time.monotonic() + _OPEN_LIMIT
    while not _openable(path) and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL)
    with suppress(OSError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        capture.write(file.read(limit))
        if size > 2 * limit:
            capture.skip(size - 2 * limit)
            file.seek(size - limit)
        capture.write(file.read(limit))
    return capture.output()


def _openable(path: Path) -> bool:
    """Whether there are files left to open one by."""
    try:
        path.open("rb").close()
    except OSError as error:
        return error.errno not in NO_FILES
    return True
