"""Run a rollout: send the waves that are due, and check their results.

A runner keeps no state of its own: it is all in the stream. Several can run one rollout, and a new
one continues it: a repeated action has the same id and counts once.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Engine

from broker.amqp.connection import LoginRefused, Unreachable
from broker.client.dispatcher import Dispatcher
from broker.history.collector import refresh
from broker.history.position import is_collected
from broker.history.queries.jobs import query_jobs
from broker.rollouts.progress import RolloutProgress, load_progress
from broker.rollouts.state import RolloutState
from broker.settings import HistorySettings
from broker.signing.resign_policy import Recorded, check_resignable
from schemas import Job, Rollout, RolloutOrder, WaveEnded, WaveSent

_POLL_INTERVAL = 1.0  # seconds
_LONGEST_REASON = 1000


class RolloutRunner:
    """Run one rollout."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: HistorySettings,
        engine: Engine,
        plan: Rollout,
        on_state: Callable[[RolloutState], None],
    ) -> None:
        self._dispatcher = dispatcher
        self.settings = settings
        self._engine = engine
        self._plan = plan
        self._on_state = on_state
        self.recorded: Recorded | None = None
        """The plan as it was read from the stream; None for a new one, which our key signs."""
        self._last_record: RolloutOrder | WaveSent | WaveEnded | None = None

    async def order(self, order: RolloutOrder) -> None:
        """Record an order for the rollout."""
        await self._dispatcher.record(order)
        self._last_record = order

    async def run(self, *, acts: bool = True) -> RolloutState:
        """Run the rollout until it has ended or has stopped; return its state.

        `acts`: whether to do what is due; otherwise another program does it.
        """
        while True:
            progress = await self._load_progress()
            # Decide nothing before the history has our own last record.
            if self._last_record is None or progress.has(self._last_record):
                state = progress.state
                self._on_state(state)
                if not state.is_active:
                    return state
                if acts and await self._act(state):
                    continue
            await asyncio.sleep(_POLL_INTERVAL)

    async def _act(self, state: RolloutState) -> bool:
        """Perform the actions that are due; return whether a record was written."""
        for number in state.cancel:
            await self._cancel(number, state.reason)
        if state.record_end is not None:
            self._last_record = WaveEnded(rollout_id=self._plan.id, number=state.record_end)
            await self._dispatcher.record(self._last_record)
        if state.send is not None:
            await self._send(state.send)
        return state.send is not None or state.record_end is not None

    async def _send(self, number: int) -> None:
        job = self._plan.wave(number)
        await asyncio.to_thread(self.check_resignable, job)
        await self._dispatcher.dispatch(job, partly=True)
        sent = WaveSent(rollout_id=self._plan.id, number=number)
        await self._dispatcher.record(sent)
        self._last_record = sent

    def check_resignable(self, job: Job) -> None:
        """Check that the signers of the plan may order a wave now.

        Raises:
            SigningRefused: they may not, and it would be signed here.
        """
        if self.recorded is not None:
            names = [str(target.name) for target in job.targets]
            with query_jobs(self._engine) as queries:
                groups = queries.groups(names)
            check_resignable(self.recorded, job, self.settings, datetime.now(UTC), groups)

    async def _cancel(self, number: int, reason: str) -> None:
        job = self._plan.wave(number, self._plan.job.created_at)  # the job may have expired
        reason = f"the rollout was aborted {reason}"[:_LONGEST_REASON]
        await self._dispatcher.cancel(job.id, reason, job=job)

    async def _load_progress(self) -> RolloutProgress:
        # Every second: with a collector, no connection is opened.
        if not await asyncio.to_thread(is_collected, self._engine):
            await refresh_patiently(self.settings, self._engine)
        return await asyncio.to_thread(load_progress, self._engine, self._plan)


async def refresh_patiently(settings: HistorySettings, engine: Engine) -> None:
    """Refresh the history; retry for the `patience` setting.

    Raises:
        BrokerError: the broker could not be reached in time, or refuses.
        HistoryError: the database cannot be used, or was read from another broker.
    """
    deadline = time.monotonic() + settings.patience.total_seconds()
    while True:
        try:
            await refresh(settings, engine)
        except LoginRefused:
            raise
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_INTERVAL)
        else:
            return
