"""An event loop in a thread of its own, for those who are not async."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_Held = TypeVar("_Held")
_NOT_OPEN = "it is not open: use it inside its `with` block"


class LoopThread(Generic[_Held]):
    """Holds something open on an event loop in a thread, and does there what others ask."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[_Held]]) -> None:
        self._opening = opening
        self._closing = asyncio.Event()
        self._opened: Future[_Held] = Future()
        self._calls: set[asyncio.Task[Any] | None] = set()
        # Reentrant: a forgotten iterator may be collected, and so ended, anywhere.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to hold it; raises what keeps it from being opened."""
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("it was opened before: make another one")
            self._loop = asyncio.new_event_loop()
            # A daemon: no script is kept from its end, however that comes.
            self._thread = threading.Thread(
                target=self._run, args=(self._loop,), name="pcm dispatcher", daemon=True
            )
            self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> _Held:
        """What is held.

        Raises:
            RuntimeError: it is not open.
        """
        if self._loop is None:
            raise RuntimeError(_NOT_OPEN)
        return self._opened.result()

    def submit(self, call: Callable[[], Awaitable[_T]]) -> "Future[_T]":
        """Begin a call on the loop.

        Raises:
            RuntimeError: it is not open.
        """
        with self._lock:
            if self._loop is None:
                raise RuntimeError(_NOT_OPEN)
            return asyncio.run_coroutine_threadsafe(self._do(call), self._loop)

    def feed(self) -> "Feed[_T]":
        """Return what takes things to the loop.

        Raises:
            RuntimeError: it is not open.
        """
        with self._lock:
            if self._loop is None:
                raise RuntimeError(_NOT_OPEN)
            return Feed(self._loop)

    def close(self) -> None:
        """Give up the calls, close what is held, and end the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(self._closing.set)
        if self._thread is not None:
            self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        holding = asyncio.create_task(self._hold())
        await self._closing.wait()
        await _ended(self._calls)
        await _ended({holding})

    async def _hold(self) -> None:
        try:
            async with self._opening() as held:
                self._opened.set_result(held)
                await asyncio.Event().wait()
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _do(self, call: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        self._calls.add(task)
        try:
            return await call()
        finally:
            self._calls.discard(task)


class Feed(AsyncIterator[_T]):
    """Takes things from another thread to a loop, which is woken once for all that are there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._things: deque[_T] = deque()
        self._there = asyncio.Event()
        self._waits = False
        self._ended = False

    def put(self, thing: _T) -> None:
        """Give one, in the other thread."""
        self._things.append(thing)
        self._wake()

    def end(self) -> None:
        """Give no more, in the other thread."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waits:
            self._waits = False
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._there.set)

    async def __anext__(self) -> _T:
        while not self._things:
            self._there.clear()
            self._waits = True
            # Looked at again: what was given before we said that we wait wakes nobody.
            if self._things:
                break
            if self._ended:
                raise StopAsyncIteration
            await self._there.wait()
        return self._things.popleft()


async def _ended(tasks: set[asyncio.Task[Any] | None]) -> None:
    left = [task for task in tasks if task is not None]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def result(future: "Future[_T]") -> _T:
    """Wait for a call's result; who is interrupted gives the call up."""
    try:
        return future.result()
    except CancelledError:
        raise RuntimeError("it was closed meanwhile") from None
    except BaseException:
        future.cancel()
        raise
