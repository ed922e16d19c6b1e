"""Waiting for what must come: for the event itself, never for a time to be over."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 180.0
"""Seconds after which what has not come hangs; on a busy machine a broker takes 60 to start."""
_EVERY = 0.02


async def until(true: Callable[[], object]) -> None:
    """Wait until a condition holds; other tasks continue."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(_EVERY)


def until_true(true: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(_EVERY)


def until_there(path: Path) -> None:
    """Wait until a file has something in it."""
    until_true(lambda: path.exists() and path.stat().st_size)


class Gate:
    """Holds the commands that wait for its file, until it is opened."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.script = f"until test -e {file}; do sleep 0.05; done"
        """For the shell: ends once it is open."""

    def open(self) -> None:
        """Let them go on."""
        self._file.touch()
