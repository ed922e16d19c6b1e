"""Prepare a program's standard streams: a closed stream or a reader that left ends no work."""

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def prepare_streams() -> None:
    """Open closed standard streams on /dev/null; discard output that has no reader any more.

    The exit status is that of the work: `pcm send --wait ... | head -1` goes on after the first
    line.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _open_null(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stdout = _tolerant(1, sys.stdout)
    sys.stderr = _tolerant(2, sys.stderr)


def _open_null(number: int) -> None:
    """Open /dev/null as a descriptor; else the next file or socket would be the stream."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor == number:
        os.set_inheritable(number, True)  # noqa: FBT003 - no keyword
    else:
        os.dup2(descriptor, number)
        os.close(descriptor)


def _tolerant(number: int, stream: TextIO | None) -> TextIO:
    """Return a stream like another one that discards what its reader no longer takes."""
    return io.TextIOWrapper(
        io.BufferedWriter(_WithoutReader(number)),
        encoding=stream.encoding if stream else "utf-8",
        errors=stream.errors if stream else "backslashreplace",
        line_buffering=stream is not None and (number == 2 or stream.isatty()),  # noqa: PLR2004
    )


class _WithoutReader(io.FileIO):
    """A file that takes all output, also after its reader or its terminal is gone."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        # A terminal that was closed gives EIO; for a file, that is a fault of the disk.
        self._gone = {errno.EPIPE, errno.EIO} if self.isatty() else {errno.EPIPE}

    def write(self, data: "ReadableBuffer") -> int | None:  # type: ignore[override]
        """Write data, or discard it if there is no reader."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
            return memoryview(data).nbytes
