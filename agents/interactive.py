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
from agents.store.transaction import JobRecord, Transaction
from agents.user import control, handover, views
from agents.user.control import Answer, text_of
from agents.user.recent_jobs import MAX_ROWS, RecentJobs
from agents.user.reminders import Reminders
from agents.user.user_actions import UserActions
from agents.user.view_stream import ViewStream
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from schemas import Requirement, State
from schemas.policy import InteractiveRules

_STORE_LIMIT = 5.0
_ASK_AGAIN = 10.0
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
        self._reminders = Reminders(settings.remind, self.open_jobs, self.changes)
        self._actions = UserActions(
            self.identity,
            self._rules,
            self.open_jobs,
            self._claims,
            self._executor,
            self._scheduler,
            self._pause,
            self._reminders,
        )
        self._views = ViewStream(
            settings.state_dir,
            self.changes,
            self._view_input,
            self._executor,
            self._recent,
            self._ledger,
        )
        self._scheduler.on_offered.append(self._reminders.show)
        self._scheduler.on_waiting.append(self._ask_to_fetch)
        self._asked_at: dict[str, float] = {}  # monotonic time by job
        self.open_jobs.on_closed.append(lambda record: self._forget_asked(record.job.id))
        self.open_jobs.on_ended.append(self._recent.add)

    async def _serve(self) -> None:
        self._recent.fill(await self._ledger.commit(_recently_ended))
        self.changes.notify()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.serve(self.directory, self._answer))
            tasks.create_task(self._reminders.run())
            tasks.create_task(self._publish_standings())
            accept = partial(self._inbox.accept_handed_over, objection=self._sealing.objection)
            tasks.create_task(handover.receive(self._settings.state_dir, accept))

    def _ask_to_fetch(self, record: JobRecord) -> None:
        """Have the service agent fetch the packages of a due job; not before each of its looks."""
        job_id, now = record.job.id, time.monotonic()
        if now < self._asked_at.get(job_id, 0.0) + _ASK_AGAIN:
            return
        self._asked_at[job_id] = now
        wrong = bool(self._contents.note(job_id))
        self._tasks.start(handover.ask_to_fetch(self._settings.state_dir, job_id, wrong=wrong))

    def _forget_asked(self, job_id: str) -> None:
        self._asked_at.pop(job_id, None)

    async def _publish_standings(self) -> None:
        """Tell the other users' agents how each mandatory job stands in this session."""
        while True:
            number, now = self.changes.number, time.time()
            self._standings.publish(
                {
                    record.job.id: Standing(
                        self._rules.start(record, now),
                        record.state is State.ACCEPTED,
                        record.state is State.ACCEPTED or record.postponements > 0,
                        record.shown_at,
                    )
                    for record in self.open_jobs.all()
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
                return await self._views.output(text_of(request, "job"))
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
            pause=self._pause.message,
            entries=self.open_jobs.all(),
            started=self._executor.started(),
            last_shown_at=self._reminders.last_shown_at,
            rules=self._rules,
            recent=self._recent.rows,
            waits=self._contents.waits,
        )


def _recently_ended(transaction: Transaction) -> list[dict[str, Any]]:
    return [views.ended(entry) for entry in transaction.recently_ended(MAX_ROWS)]
