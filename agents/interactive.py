"""The interactive agent: runs in a user's session with the user's rights, for foreground jobs."""

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import Any

from agents.agent import Agent
from agents.claims.standings import Standing
from agents.jobs.host import this_host
from agents.settings import AgentSettings
from agents.store.transaction import Transaction
from agents.user import control, handover, views
from agents.user.control import Answer, text_field
from agents.user.recent_jobs import MAX_ROWS, RecentJobs
from agents.user.reminders import Reminders
from agents.user.user_actions import UserActions
from agents.user.view_stream import ViewStream
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from schemas import Requirement, State
from schemas.policy import InteractiveRules

_STORE_LIMIT = 5.0
_PAUSE = 0.1  # seconds for which changes are collected


class InteractiveAgent(Agent):
    """Offers foreground jobs to its user; runs accepted jobs, and mandatory jobs when due."""

    kind = AgentKind.INTERACTIVE

    def __init__(self, settings: AgentSettings) -> None:
        self._rules = InteractiveRules(
            this_host(settings), settings.countdown.total_seconds(), settings.accept_offers
        )
        super().__init__(settings, self._rules, settings.user)
        self._recent = RecentJobs()
        self._reminders = Reminders(settings.remind, self._jobs.open_jobs, self.changes)
        self._actions = UserActions(
            self.identity,
            self._rules,
            self._jobs.open_jobs,
            self._jobs.claims,
            self._jobs.executor,
            self._jobs.scheduler,
            self._jobs.pause,
            self._reminders,
        )
        self._views = ViewStream(
            settings.state_dir,
            self.changes,
            self._view_input,
            self._jobs.executor,
            self._recent,
            self._ledger,
        )
        self._jobs.scheduler.on_offered.append(self._reminders.show)
        self._jobs.open_jobs.on_ended.append(self._recent.add)

    async def _serve(self) -> None:
        self._recent.fill(await self._ledger.commit(_recently_ended))
        self.changes.notify()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.serve_control_socket(self.directory, self._answer))
            tasks.create_task(self._reminders.run())
            tasks.create_task(self._publish_standings())
            accept = partial(self._orders.accept_handed_over, objection=self._sealing.objection)
            tasks.create_task(handover.receive(self._settings.state_dir, accept))

    async def _publish_standings(self) -> None:
        """Tell the other users' agents how each mandatory job stands in this session."""
        while True:
            number, now = self.changes.number, time.time()
            self._jobs.standings.publish(
                {
                    record.job.id: Standing(
                        self._rules.start(record, now),
                        record.state is State.ACCEPTED,
                        record.state is State.ACCEPTED or record.postponements > 0,
                        record.shown_at,
                    )
                    for record in self._jobs.open_jobs.all()
                    if record.job.requirement is Requirement.MANDATORY
                    and record.shown_at is not None
                    and record.state is not State.STARTED
                }
            )
            await self.changes.wait_beyond(number)
            await asyncio.sleep(_PAUSE)

    def _shutdown_grace(self) -> float:
        return 0.0  # the user logs off, so the user's commands end

    async def _answer(self, request: dict[str, Any]) -> Answer:
        match request:
            case {"do": "watch"}:
                return self._views.watch()
            case {"do": "output"}:
                return await self._views.output(text_field(request, "job"))
        answer = self._actions.make(request)
        # The change is on the disk before the answer; a full disk delays it up to the limit.
        with suppress(TimeoutError):
            async with timeout(_STORE_LIMIT):
                await self._ledger.commit(lambda _: None)
        return answer

    def _view_input(self, service: bool) -> views.ViewInput:  # noqa: FBT001 - the only argument
        return views.ViewInput(
            identity=self.identity,
            now=time.time(),
            connection=self._session.state,
            service=service,
            pause=self._jobs.pause.message,
            entries=self._jobs.open_jobs.all(),
            started=self._jobs.executor.started(),
            last_shown_at=self._reminders.last_shown_at,
            rules=self._rules,
            recent=self._recent.rows,
        )


def _recently_ended(transaction: Transaction) -> list[dict[str, Any]]:
    return [views.ended(entry) for entry in transaction.recently_ended(MAX_ROWS)]
