"""The output of a command that does not need its agent, in files of limited size.

A process of its own, `spool_writer`, reads the command's pipes, as long as a process holds them.
"""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from agents.execution.output import STREAMS, Capture, unread
from agents.execution.processes.subreaper import SPAWN_LOCK
from schemas import Command, Output

_WRITER = Path(__file__).with_name("spool_writer.py")
_LOCK = "lock"
_LIMIT = 10.0
_POLL = 0.02


def is_spooled(command: Command) -> bool:
    """Return whether a command, or what it leaves, may write when no agent is there."""
    return command.survives_agent or command.leaves_processes


def open_spool(folder: Path) -> list[int]:
    """Start a writer in a new folder; return the ends of stdout and stderr for the command.

    Raises:
        OSError: the limit of open files or processes is reached, or the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start
    folder.mkdir(mode=0o700, parents=True)
    (folder / _LOCK).touch(0o600)
    with ExitStack() as read_ends, ExitStack() as write_ends:
        pipes = [_open_pipe(folder / f"{name}.pipe", read_ends, write_ends) for name in STREAMS]
        readers = [reader for reader, _ in pipes]
        with SPAWN_LOCK:  # so that it does not get the mark of a command
            popen = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, "-I", "-S", str(_WRITER), *map(str, readers)],
                pass_fds=readers,
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        popen.returncode = 0  # `reap_orphans` waits for it
        write_ends.pop_all()
        return [writer for _, writer in pipes]


def _open_pipe(path: Path, read_ends: ExitStack, write_ends: ExitStack) -> tuple[int, int]:
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    read_ends.callback(os.close, reader)
    writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    write_ends.callback(os.close, writer)
    return reader, writer


def read_spool(folder: Path, stream: str, offset: int, size: int) -> tuple[int, bytes]:
    """Return kept bytes of a stream from an offset on, and the offset of the first one."""
    found = bytearray()
    begin = offset
    for start, path in _segments(folder, stream):
        with suppress(FileNotFoundError), path.open("rb") as file:  # it is removed meanwhile
            end = start + os.fstat(file.fileno()).st_size
            if end <= offset or len(found) >= size:
                continue
            if not found:
                begin = max(offset, start)
            elif start != begin + len(found):
                break
            file.seek(begin + len(found) - start)
            found += file.read(size - len(found))
    return begin, bytes(found)


def spool_end(folder: Path, stream: str) -> int:
    """Return the offset of the end of a stream."""
    for start, path in reversed(_segments(folder, stream)):
        with suppress(FileNotFoundError):
            return start + path.stat().st_size
    return 0


def _segments(folder: Path, stream: str) -> list[tuple[int, Path]]:
    """Return the files of a stream, with their offsets, in order."""
    found = [
        (int(path.suffix[1:]), path)
        for path in folder.glob(f"{stream}.*")
        if path.suffix[1:].isdecimal()
    ]
    return sorted(found)


async def spooled(folder: Path, limit: int) -> tuple[Output, Output]:
    """Return the output in a command's spool folder: stdout and stderr."""
    deadline = time.monotonic() + _LIMIT
    while not _is_drained(folder) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL)
    stdout, stderr = [_output(folder, name, limit) for name in STREAMS]
    return stdout, stderr


def _output(folder: Path, stream: str, limit: int) -> Output:
    capture = Capture(limit)
    end = spool_end(folder, stream)
    _, head = read_spool(folder, stream, 0, limit)
    begin, tail = read_spool(folder, stream, max(len(head), end - limit), limit)
    capture.write(head)
    capture.skip(begin - len(head))
    capture.write(tail)
    return capture.output()


def _is_drained(folder: Path) -> bool:
    """Return whether all that was written into the pipes is in the files."""
    try:
        with ExitStack() as files:
            lock = files.enter_context((folder / _LOCK).open("r+"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in STREAMS:
                pipe = os.open(folder / f"{name}.pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                files.callback(os.close, pipe)
                if unread(pipe):
                    return False
    except FileNotFoundError:
        return True
    except OSError:  # the writer has the lock, or the limit of open files is reached
        return False
    return True
