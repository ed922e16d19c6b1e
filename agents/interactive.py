"""The interactive agent: in a user's session, with the user's rights, for foreground jobs."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from agents.agent import Agent
from agents.jobs.host import here
from agents.jobs.policy import InteractiveRules
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord, Transaction
from agents.user import control
from agents.user import recent_jobs as past
from agents.user import views as view
from agents.user.control import Answer, text_of
from agents.user.reminders import Reminders
from agents.user.user_actions import UserActions
from agents.user.view_stream import ViewStream
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind

_STORED_LIMIT = 5.0


class InteractiveAgent(Agent):
    """Offers foreground jobs to its user, and runs what the user or the mandatory time says."""

    kind = AgentKind.INTERACTIVE

    def __init__(self, settings: AgentSettings) -> None:
        self._interactive = InteractiveRules(
            here(settings), settings.countdown.total_seconds(), settings.accept_offers
        )
        self._past = past.RecentJobs()
        super().__init__(settings, self._interactive, settings.user)
        self._reminders = Reminders(settings.remind, self.entries, self.changes)
        self._choices = UserActions(
            self.identity,
            self._interactive,
            self.entries,
            self._claims,
            self._runs,
            self._presence,
            self._reminders,
            self.accept,
        )
        self._showing = ViewStream(
            settings.state_dir, self.changes, self._scene, self._runs, self._past, self._ledger
        )

    def offered(self, entry: JobRecord) -> None:
        """Tell the user of an offer."""
        super().offered(entry)
        self._reminders.show(entry)

    def ended(self, entry: JobRecord) -> None:
        """Tell the user that a job ended."""
        self._past.add(entry)

    async def _serve(self) -> None:
        self._past.fill(await self._ledger.commit(_newest))
        self.changes.tell()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.serve(self.directory, self._answer))
            tasks.create_task(self._reminders.run())

    def _patience(self) -> float:
        return 0.0  # the user logs off: what runs in their name ends

    async def _answer(self, request: dict[str, Any]) -> Answer:
        match request:
            case {"do": "watch"}:
                return self._showing.watch()
            case {"do": "output"}:
                return await self._showing.output(text_of(request, "job"))
        said = self._choices.make(request)
        # On the disk before the user is told; a disk that is full is not waited for.
        with suppress(TimeoutError):
            async with timeout(_STORED_LIMIT):
                await self._ledger.commit(lambda _: None)
        return said

    def _scene(self, service: bool) -> view.ViewInput:  # noqa: FBT001 - the only thing to tell
        return view.ViewInput(
            identity=self.identity,
            now=time.time(),
            link=self._uplink.link,
            service=service,
            pause=self._presence.said,
            entries=self.entries.all(),
            started=self._runs.started(),
            shown=self._reminders.last,
            rules=self._interactive,
            past=self._past.rows,
        )


def _newest(tables: Transaction) -> list[dict[str, Any]]:
    return [view.ended(entry) for entry in tables.newest(past.MOST)]
