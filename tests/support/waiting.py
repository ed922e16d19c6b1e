"""Waiting for what must come: for the event itself, never for a time to be over."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 180.0
"""Seconds after which what has not come hangs; on a busy machine a broker takes 60 to start."""
_EVERY = 0.02


async def until(true: Callable[[], object]) -> None:
    """Wait until something holds; tasks go on meanwhile."""
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


def held_by(file: Path) -> str:
    """Return a script of the shell that ends once a file is there."""
    return f"until test -e {file}; do sleep 0.05; done"
