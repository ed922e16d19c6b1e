"""What windows see of an interactive agent: pictures of its work, and what its commands write."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.changes import Changes
from agents.claims import service_liveness as neighbour
from agents.execution import live_output as live
from agents.jobs.executor import Executor
from agents.store.ledger import Ledger
from agents.user import views as view
from agents.user.control import Declined, Stream
from agents.user.recent_jobs import RecentJobs

_PAUSE = 0.2  # seconds between two pictures
_LOOK = 3.0  # seconds after which the service agent is looked for

Line = dict[str, Any]


class ViewStream:
    """Streams to windows; each goes at its own speed, and keeps nobody."""

    def __init__(
        self,
        state_dir: Path,
        changes: Changes,
        scene: Callable[[bool], view.ViewInput],
        executor: Executor,
        past: RecentJobs,
        ledger: Ledger,
    ) -> None:
        """Prepare; `scene` returns what there is to see, told whether the service is there."""
        self._state_dir = state_dir
        self._changes = changes
        self._scene = scene
        self._executor = executor
        self._past = past
        self._ledger = ledger

    async def watch(self) -> Stream:
        """Yield a picture now, and another whenever something is different."""
        told: Line = {}
        while True:
            began = time.monotonic()
            number, service = self._changes.number, neighbour.is_up(self._state_dir)
            picture = view.snapshot(self._scene(service))
            if picture != told | {"now": picture["now"]}:
                told = picture
                yield picture
            await self._different(number, service=service)
            await asyncio.sleep(max(0.0, began + _PAUSE - time.monotonic()))

    async def _different(self, number: int, *, service: bool) -> None:
        while not await self._changes.wait_beyond(number, _LOOK):
            if neighbour.is_up(self._state_dir) != service:
                return

    async def output(self, job_id: str) -> Stream:
        """Return what the command of a job writes, or wrote, and then how it ended.

        Raises:
            Declined: it was not run here.
        """
        if running := self._executor.live(job_id):
            return self._follow(job_id, running)
        entry = await self._ledger.commit(lambda transaction: transaction.ended_record(job_id))
        if entry is None or entry.final is None:
            raise Declined(f"{job_id}: no such job runs or has ended here")
        return _lines([*live.stored(entry.final.result), {"ended": view.ended(entry)}])

    async def _follow(self, job_id: str, running: live.LiveOutput) -> Stream:
        async for line in live.follow(running):
            yield line
        yield {"ended": self._past.find(job_id)}


async def _lines(lines: list[Line]) -> Stream:
    for line in lines:
        yield line
