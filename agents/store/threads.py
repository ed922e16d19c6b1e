"""Threads that work for an event loop, and hand back many results by one wake-up of it."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from agents.store.state_folder import StateError

_T = TypeVar("_T")
_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Answers:
    """Results on their way from threads to the futures of an event loop."""

    def __init__(self) -> None:
        self._given: list[tuple[asyncio.Future[Any], Any]] = []
        self._lock = threading.Lock()

    def give(self, answers: Iterable[tuple["asyncio.Future[Any]", Any]]) -> None:
        """Hand over results, an exception for an error; from any thread."""
        with self._lock:
            waking = not self._given
            self._given += answers
            if waking and self._given:
                try:
                    self._given[0][0].get_loop().call_soon_threadsafe(self.hand_over)
                except RuntimeError:  # the loop is closed: nobody waits
                    self._given.clear()

    def hand_over(self) -> None:
        """Resolve the futures of what was given so far; from the event loop's thread."""
        with self._lock:
            given, self._given = self._given, []
        for future, result in given:
            if future.done():  # whoever asked was cancelled
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


class Threads:
    """So many threads that take on work; all exist from the start: later there may be no room."""

    def __init__(self, count: int, name: str) -> None:
        """Start them.

        Raises:
            StateError: there is no room for them.
        """
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._answers = Answers()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self.close()
            text = f"no room for {count} threads to {name}: {error}; is PCM_CONCURRENCY too high?"
            raise StateError(text) from error

    def call(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Have something done in one of the threads, as soon as one is free."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._work.put((work, future))
        return future

    def close(self) -> None:
        """Take on nothing more; what was begun goes on."""
        for _ in self._threads:
            self._work.put(None)

    def finish(self) -> None:
        """Wait for all that was begun, and hand over what came of it."""
        self.close()
        for thread in self._threads:
            thread.join()
        self._answers.hand_over()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                result: Any = work()
            except BaseException as error:  # noqa: BLE001 - whoever asked is told
                result = error
            self._answers.give([(future, result)])
            del item, work, future, result  # nothing of it is kept while there is nothing to do
