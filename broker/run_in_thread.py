"""Run a coroutine for a caller that is not async, or that has a running event loop."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new thread with its own event loop; return its result."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
