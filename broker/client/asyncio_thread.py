"""An event loop in a thread, for callers that are not async."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_Resource = TypeVar("_Resource")
_NOT_OPEN = "not open: use it inside its `with` block"


class LoopThread(Generic[_Resource]):
    """Keep a resource open on an event loop in a thread, and run calls on that loop."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[_Resource]]) -> None:
        self._opening = opening
        self._closing = asyncio.Event()
        self._opened: Future[_Resource] = Future()
        self._calls: set[asyncio.Task[Any] | None] = set()
        # Reentrant: the garbage collector can close an iterator at any point.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Open the resource; raise the error if that fails."""
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("it can be opened only once")
            self._loop = asyncio.new_event_loop()
            # A daemon thread does not keep the interpreter from exiting.
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
    def resource(self) -> _Resource:
        """The open resource.

        Raises:
            RuntimeError: it is not open.
        """
        if self._loop is None:
            raise RuntimeError(_NOT_OPEN)
        return self._opened.result()

    def submit(self, call: Callable[[], Awaitable[_T]]) -> "Future[_T]":
        """Start a call on the loop.

        Raises:
            RuntimeError: it is not open.
        """
        with self._lock:
            if self._loop is None:
                raise RuntimeError(_NOT_OPEN)
            return asyncio.run_coroutine_threadsafe(self._run_call(call), self._loop)

    def queue(self) -> "LoopQueue[_T]":
        """Return a queue from other threads to the loop.

        Raises:
            RuntimeError: it is not open.
        """
        with self._lock:
            if self._loop is None:
                raise RuntimeError(_NOT_OPEN)
            return LoopQueue(self._loop)

    def close(self) -> None:
        """Cancel the calls, close the resource, and end the thread."""
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
        resource = asyncio.create_task(self._keep_open())
        await self._closing.wait()
        await _cancel(self._calls)
        await _cancel({resource})

    async def _keep_open(self) -> None:
        try:
            async with self._opening() as resource:
                self._opened.set_result(resource)
                await asyncio.Event().wait()
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _run_call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        self._calls.add(task)
        try:
            return await call()
        finally:
            self._calls.discard(task)


class LoopQueue(AsyncIterator[_T]):
    """Pass items from another thread to a loop, which is woken once for all that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[_T] = deque()
        self._filled = asyncio.Event()
        self._is_waiting = False
        self._ended = False

    def put(self, item: _T) -> None:
        """Add an item, in the other thread."""
        self._items.append(item)
        self._wake()

    def end(self) -> None:
        """End the iteration, in the other thread."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._filled.set)

    async def __anext__(self) -> _T:
        while not self._items:
            self._filled.clear()
            self._is_waiting = True
            # Check again: an item that was put before `_is_waiting` was set did not wake us.
            if self._items:
                break
            if self._ended:
                raise StopAsyncIteration
            await self._filled.wait()
        return self._items.popleft()


async def _cancel(tasks: set[asyncio.Task[Any] | None]) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def wait_for_result(future: "Future[_T]") -> _T:
    """Wait for a call's result; cancel the call on an interrupt."""
    try:
        return future.result()
    except CancelledError:
        raise RuntimeError("it was closed during the call") from None
    except BaseException:
        future.cancel()
        raise
