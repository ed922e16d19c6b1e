"""What a command wrote: all of it, or its beginning and its end."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agents.platforms import NO_FILES
from schemas import Output

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


def spooled(spool: Path, limit: int) -> tuple[Output, Output]:
    """Return what a command wrote to the files of its spool folder."""
    stdout, stderr = (_file_output(spool / name, limit) for name in SPOOL_FILES)
    return stdout, stderr


def _file_output(path: Path, limit: int) -> Output:
    capture = Capture(limit)
    deadline = time.monotonic() + _OPEN_LIMIT
    while not _openable(path) and time.monotonic() < deadline:
        time.sleep(_POLL)
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
