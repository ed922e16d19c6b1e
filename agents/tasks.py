"""Tasks that end by themselves, or with the agent."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTasks:
    """Work that is started while the agent runs, in its task group: its failure ends the agent."""

    def __init__(self) -> None:
        self.group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start work in the background."""
        task = self.group.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def cancel(self) -> None:
        """Cancel all that is not done."""
        for task in self._running:
            task.cancel()
