"""Processes of this machine, as tests look at them."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agents.execution.processes.process_table import process_table
from agents.execution.processes.subreaper import become_subreaper


def alive(session: int) -> bool:
    """Return whether a session has a live process; a zombie does not count."""
    return any(
        entry.session == session and not entry.has_ended for entry in process_table().values()
    )


def with_argument(text: str) -> list[int]:
    """Return the live processes that have an argument."""
    found = []
    for pid, entry in process_table().items():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if not entry.has_ended and text.encode() in words:
                found.append(pid)
    return found


@contextmanager
def subreaper() -> Iterator[None]:
    """Let this process be the parent of its commands' orphans, as an agent is."""
    become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
