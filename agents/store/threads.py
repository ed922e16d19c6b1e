"""A thread pool for an event loop that returns many results with one wake-up of the loop."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from agents.store.state_folder import StateError
from schemas.text import counted

_T = TypeVar("_T")
_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class ResultQueue:
    """Passes results from threads to the futures of an event loop."""

    def __init__(self) -> None:
        self._results: list[tuple[asyncio.Future[Any], Any]] = []
        self._lock = threading.Lock()

    def put(self, results: Iterable[tuple["asyncio.Future[Any]", Any]]) -> None:
        """Add results or exceptions; called from any thread."""
        with self._lock:
            wakes_loop = not self._results
            self._results += results
            if wakes_loop and self._results:
                try:
                    self._results[0][0].get_loop().call_soon_threadsafe(self.resolve)
                except RuntimeError:  # the loop is closed
                    self._results.clear()

    def resolve(self) -> None:
        """Resolve the futures of all queued results; called from the event loop's thread."""
        with self._lock:
            results, self._results = self._results, []
        for future, result in results:
            if future.done():  # the caller was cancelled
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


class ThreadPool:
    """A fixed number of threads.

    All are started at once, since the process may be unable to start threads later.
    """

    def __init__(self, count: int, name: str) -> None:
        """Start the threads.

        Raises:
            StateError: the threads cannot be started.
        """
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._results = ResultQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self.close()
            threads = counted(count, "thread")
            text = f"cannot start {threads} ({name}): {error}; is PCM_CONCURRENCY too high?"
            raise StateError(text) from error

    def submit(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Run a function in the next free thread."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._work.put((work, future))
        return future

    def close(self) -> None:
        """Accept no more work; submitted work is still done."""
        for _ in self._threads:
            self._work.put(None)

    def join(self) -> None:
        """Close, wait for the submitted work, and resolve its futures."""
        self.close()
        for thread in self._threads:
            thread.join()
        self._results.resolve()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                result: Any = work()
            except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
                result = error
            self._results.put([(future, result)])
            del item, work, future, result  # free them while the thread waits
