"""The streams that an interactive agent sends to its windows: snapshots, and command output."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.changes import Changes
from agents.claims import service_liveness
from agents.execution import live_output
from agents.jobs.executor import Executor
from agents.store.ledger import Ledger
from agents.user import views
from agents.user.control import RequestRejected, Stream
from agents.user.recent_jobs import RecentJobs

_PAUSE = 0.2  # seconds between two snapshots
_SERVICE_POLL = 3.0  # seconds between two checks for the service agent

Line = dict[str, Any]


class ViewStream:
    """Streams to windows, each at its own speed."""

    def __init__(
        self,
        state_dir: Path,
        changes: Changes,
        view_input: Callable[[bool], views.ViewInput],
        executor: Executor,
        recent: RecentJobs,
        ledger: Ledger,
    ) -> None:
        """Initialize; `view_input` takes whether the service agent is running."""
        self._state_dir = state_dir
        self._changes = changes
        self._view_input = view_input
        self._executor = executor
        self._recent = recent
        self._ledger = ledger

    async def watch(self) -> Stream:
        """Yield a snapshot now, and a new one after each change."""
        last: Line = {}
        while True:
            began = time.monotonic()
            number, service = self._changes.number, service_liveness.is_up(self._state_dir)
            snapshot = views.build_snapshot(self._view_input(service))
            if snapshot != last | {"now": snapshot["now"]}:
                last = snapshot
                yield snapshot
            await self._wait_for_change(number, service=service)
            await asyncio.sleep(max(0.0, began + _PAUSE - time.monotonic()))

    async def _wait_for_change(self, number: int, *, service: bool) -> None:
        while not await self._changes.wait_beyond(number, _SERVICE_POLL):
            if service_liveness.is_up(self._state_dir) != service:
                return

    async def output(self, job_id: str) -> Stream:
        """Return the output of a job's command, followed by the row of its end.

        Raises:
            RequestRejected: this agent has not run the job.
        """
        if live := self._executor.live(job_id):
            return self._follow(job_id, live)
        entry = await self._ledger.commit(lambda transaction: transaction.ended_record(job_id))
        if entry is None or entry.final is None:
            raise RequestRejected(f"{job_id}: no such job runs or has ended here")
        return _lines([*live_output.stored(entry.final.result), {"ended": views.ended(entry)}])

    async def _follow(self, job_id: str, live: live_output.LiveOutput) -> Stream:
        async for line in live_output.follow_live_output(live):
            yield line
        yield {"ended": self._recent.find(job_id)}


async def _lines(lines: list[Line]) -> Stream:
    for line in lines:
        yield line
