"""Write a command's output into files of limited size: `spool_writer.py STDOUT STDERR`, both pipes.

An agent starts this in the spool folder of a command whose output must be read without the agent.
It ends when no process holds the pipes any more. Each stream is a series of files, named by the
offset of their first byte: the first one and the last ones are kept.
"""

import fcntl
import os
import select
import sys
from contextlib import suppress

SEGMENT = 1024 * 1024  # at least the greatest PCM_OUTPUT_LIMIT
_CHUNK = 64 * 1024
_KEPT = 2  # complete or not, besides the first one
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class _Stream:
    """The files of one stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._total = 0
        self._offsets: list[int] = []  # of the files that exist
        self._file = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Add data; if the disk is full or the folder is gone, it counts as dropped."""
        try:
            self._append(data)
        except OSError:
            self._close()
        self._total += len(data)

    def _append(self, data: bytes) -> None:
        if self._size >= SEGMENT:
            self._close()
        if self._file < 0:
            self._file = os.open(f"{self._name}.{self._total}", _NEW, 0o600)
            self._offsets.append(self._total)
            for offset in self._offsets[1:-_KEPT]:
                self._offsets.remove(offset)
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._name}.{offset}")  # noqa: PTH108 - faster
        rest = memoryview(data)
        while rest:
            count = os.write(self._file, rest)
            self._size += count
            rest = rest[count:]

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._size = 0


def main() -> None:
    """Run the program."""
    streams = {
        int(pipe): _Stream(name)
        for pipe, name in zip(sys.argv[1:], ("stdout", "stderr"), strict=True)
    }
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    poll = select.poll()
    for pipe in streams:
        poll.register(pipe, select.POLLIN)
    while streams:
        for pipe, _ in poll.poll():
            fcntl.flock(lock, fcntl.LOCK_EX)  # who has it sees no byte between pipe and file
            data = os.read(pipe, _CHUNK)
            if data:
                streams[pipe].write(data)
            else:
                poll.unregister(pipe)
                del streams[pipe]
            fcntl.flock(lock, fcntl.LOCK_UN)


if __name__ == "__main__":
    main()
