"""Lets a timeout be one on the Python of Debian 12, too.

A group of tasks that fails may leave its own task counted as cancelled. Before Python 3.11.4, any
later timeout in that task then passed for a cancellation, for which nobody had asked, and ended the
task in silence: see https://github.com/python/cpython/issues/102780.
"""

import asyncio
import sys
from types import TracebackType

_enter, _exit = asyncio.Timeout.__aenter__, asyncio.Timeout.__aexit__


def tell_the_time() -> None:
    """Have every `asyncio.timeout` raise TimeoutError where it does in later versions."""
    if sys.version_info < (3, 11, 4):
        asyncio.Timeout.__aenter__ = _remember  # type: ignore[method-assign]
        asyncio.Timeout.__aexit__ = _compare  # type: ignore[method-assign]


def _cancelling() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


async def _remember(self: asyncio.Timeout) -> asyncio.Timeout:
    self.before = _cancelling()  # type: ignore[attr-defined]
    return await _enter(self)


async def _compare(
    self: asyncio.Timeout,
    exc_type: type[BaseException] | None,
    exc_val: BaseException | None,
    exc_tb: TracebackType | None,
) -> None:
    await _exit(self, exc_type, exc_val, exc_tb)
    ours = exc_type is asyncio.CancelledError and _cancelling() <= self.before  # type: ignore[attr-defined]
    if self.expired() and ours:
        raise TimeoutError from exc_val
