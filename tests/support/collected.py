"""A history that has read the stream so far: a new one would begin with all earlier tests."""

import asyncio
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from broker.history.collector import catch_up
from broker.history.engine import open_history
from broker.settings import HistorySettings


def collected(url: str, file: Path) -> None:
    """Put a history that is up to date with a broker's stream into a file."""
    kept = _folder() / f"{abs(hash(url))}.db"
    with ThreadPoolExecutor(1) as thread:  # who asks may have a loop that runs
        thread.submit(asyncio.run, _read(url, kept)).result()
    shutil.copy(kept, file)


@cache
def _folder() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="pcm-collected-")
    _HOLDERS.append(holder)
    return Path(holder.name)


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed when the tests end


async def _read(url: str, file: Path) -> None:
    engine = open_history(f"sqlite:///{file}")
    try:
        await catch_up(HistorySettings(amqp_url=(url,)), engine)
    finally:
        engine.dispose()
