"""Carries a rollout out: sends what is due, and looks at what became of it.

It keeps nothing that matters: whoever comes next, or works at the same time, finds all of it in
the stream. What is done twice has the same id, and so is done once.
"""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import Engine

from broker.amqp.connection import LoginRefused, Unreachable
from broker.client.dispatcher import Dispatcher
from broker.history.collector import catch_up
from broker.history.position import is_collected
from broker.rollouts.progress import RolloutProgress, course
from broker.rollouts.state import RolloutState
from broker.settings import HistorySettings
from schemas import Rollout, RolloutOrder, WaveEnded, WaveSent

_LOOK = 1.0  # seconds
_LONGEST_REASON = 1000


class Driver:
    """Drives one rollout."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: HistorySettings,
        engine: Engine,
        plan: Rollout,
        told: Callable[[RolloutState], None],
    ) -> None:
        self._dispatcher = dispatcher
        self.settings = settings
        self._engine = engine
        self._plan = plan
        self._told = told
        self._ours: RolloutOrder | WaveSent | WaveEnded | None = None

    async def begin(self) -> None:
        """Record the plan: from now on anyone can carry it out."""
        await self._dispatcher.record(self._plan)

    async def order(self, order: RolloutOrder) -> None:
        """Record what is asked of the rollout."""
        await self._dispatcher.record(order)
        self._ours = order

    async def drive(self) -> RolloutState:
        """Carry it out until it has ended, or does not go on; return how it stands then."""
        while True:
            found = await self._look()
            # What we did ourselves is known as well: nothing is decided on less.
            if self._ours is None or found.has(self._ours):
                standing = found.standing
                self._told(standing)
                if not standing.goes_on:
                    return standing
                if await self._act(standing):
                    continue
            await asyncio.sleep(_LOOK)

    async def _act(self, standing: RolloutState) -> bool:
        """Do what is to be done now; return whether that was anything."""
        for number in standing.cancel:
            await self._cancel(number, standing.reason)
        if standing.mark is not None:
            self._ours = WaveEnded(rollout_id=self._plan.id, number=standing.mark)
            await self._dispatcher.record(self._ours)
        if standing.send is not None:
            await self._send(standing.send)
        return standing.send is not None or standing.mark is not None

    async def _send(self, number: int) -> None:
        await self._dispatcher.dispatch(self._plan.wave(number), partly=True)
        sent = WaveSent(rollout_id=self._plan.id, number=number)
        await self._dispatcher.record(sent)
        self._ours = sent

    async def _cancel(self, number: int, reason: str) -> None:
        job = self._plan.wave(number, self._plan.job.created_at)  # it may have expired
        why = f"the rollout was aborted {reason}"[:_LONGEST_REASON]
        await self._dispatcher.cancel(job.id, why, job=job)

    async def _look(self) -> RolloutProgress:
        """Return how the rollout goes, as of now."""
        await refresh(self.settings, self._engine)
        return await asyncio.to_thread(course, self._engine, self._plan)


async def refresh(settings: HistorySettings, engine: Engine) -> None:
    """Have the history read what is new, if no collector does; try again for a while.

    It is called every second: where a collector works, it makes no connection.

    Raises:
        BrokerError: the broker could not be reached in time, or does not let us.
    """
    give_up = time.monotonic() + settings.patience.total_seconds()
    while not await asyncio.to_thread(is_collected, engine):
        try:
            await catch_up(settings, engine)
        except LoginRefused:
            raise
        except Unreachable:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(_LOOK)
        else:
            return
