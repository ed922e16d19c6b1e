"""`asyncio.timeout`, with a fix for Python 3.11.2, the version of Debian 12.

A task group that fails may leave its own task counted as cancelled. Before Python 3.11.4, a later
`asyncio.timeout` in that task then ended it with CancelledError instead of TimeoutError
(https://github.com/python/cpython/issues/102780).
"""

import asyncio
import sys
from types import TracebackType
from typing import Self

if sys.version_info >= (3, 11, 4):
    timeout = asyncio.timeout
else:

    class _Timeout(asyncio.Timeout):  # type: ignore[misc] # final in typeshed
        async def __aenter__(self) -> Self:
            self._cancelling_before = _cancelling()
            await super().__aenter__()
            return self

        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_val: BaseException | None,
            exc_tb: TracebackType | None,
        ) -> None:
            await super().__aexit__(exc_type, exc_val, exc_tb)
            ours = exc_type is asyncio.CancelledError and _cancelling() <= self._cancelling_before
            if self.expired() and ours:
                raise TimeoutError from exc_val

    def _cancelling() -> int:
        task = asyncio.current_task()
        return task.cancelling() if task else 0

    def timeout(delay: float | None) -> asyncio.Timeout:
        """Return a context manager that raises TimeoutError after a delay in seconds."""
        when = None if delay is None else asyncio.get_running_loop().time() + delay
        return _Timeout(when)
