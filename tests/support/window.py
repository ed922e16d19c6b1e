"""A user's window for tests: what the agent's socket sends to it."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas import Job
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation

Line = dict[str, Any]


class Window:
    """One connection to an interactive agent."""

    def __init__(self, speaker: socket.socket) -> None:
        self._speaker = speaker
        self._lines = speaker.makefile("rb")

    def next(self) -> Line:
        """Return the next line."""
        line = self._lines.readline()
        assert line, "the agent said no more"
        found: Line = json.loads(line)
        return found

    def until(self, wanted: Callable[[Line], object]) -> Line:
        """Return the next line that is wanted."""
        deadline = time.monotonic() + LIMIT
        while not wanted(line := self.next()):
            assert time.monotonic() < deadline, line
        return line

    def rest(self) -> Iterator[Line]:
        """Yield all lines until the agent ends the connection."""
        for line in self._lines:
            yield json.loads(line)

    def close(self) -> None:
        """Go away."""
        self._lines.close()
        self._speaker.close()


@contextmanager
def window(ws: Workstation, request: Line | bytes, user: str = "ada") -> Iterator[Window]:
    """Ask the agent for something; a line that is no request is sent as it is."""
    line = request if isinstance(request, bytes) else json.dumps(request).encode()
    folder = os.open(ws.state_dir / f"interactive-{user}", os.O_RDONLY)
    speaker = socket.socket(socket.AF_UNIX)
    speaker.settimeout(LIMIT)
    # Soon after its start the agent does not listen yet.
    deadline = time.monotonic() + LIMIT
    while speaker.connect_ex(f"/proc/self/fd/{folder}/control.sock"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(folder)
    speaker.sendall(line + b"\n")
    opened = Window(speaker)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def watching(ws: Workstation) -> Iterator[Window]:
    """Watch the agent's work."""
    with window(ws, {"do": "watch"}) as opened:
        yield opened


def asked(ws: Workstation, do: str, job: Job, **more: object) -> Line:
    """Ask for something that is answered by one line."""
    with window(ws, {"do": do, "job": job.id, **more}) as opened:
        (line,) = opened.rest()
        return line


def offer(snapshot: Line, job: Job) -> Line | None:
    """Return a job's offer, if it is among them."""
    return row(snapshot["offers"], job)


def row(rows: list[Line], job: Job) -> Line | None:
    """Return the row of a job, if it is among them."""
    return next((found for found in rows if found["job"] == job.id), None)


def seen(ws: Workstation, job: Job, **fields: object) -> Line:
    """Return a job's offer as soon as a window shows it with these fields."""
    with watching(ws) as opened:

        def wanted(snapshot: Line) -> bool:
            found = offer(snapshot, job)
            return found is not None and fields.items() <= found.items()

        found = offer(opened.until(wanted), job)
        assert found is not None
        return found


def memory(pid: int) -> int:
    """Return the bytes that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
