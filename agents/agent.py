"""Connects the components of an agent, and starts and stops them.

The components are a pipeline: inbox, ledger, scheduler, claims, executor, outbox. Each stores its
result in the ledger, so that an agent can recover from a crash at any step.
"""

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import ClassVar

from agents import facts
from agents.changes import Changes
from agents.execution.processes.cgroup import remove_empty
from agents.execution.processes.subreaper import reap_orphans
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.inbox.consumer import Inbox
from agents.inbox.order_store import OrderStore
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.pipeline import JobPipeline
from agents.machine import identify
from agents.outbox import Outbox
from agents.session.broker_session import BrokerSession
from agents.session.heartbeat import Heartbeat
from agents.session.standby import Standby
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.state_folder import (
    check_state_directory,
    lock_directory,
    private_directory,
    shared_directory,
)
from agents.store.transaction import Transaction
from agents.tasks import BackgroundTasks
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind, agent_word, queue_name
from broker.log import get_logger
from schemas.policy import Rules

_log = get_logger()
_CLEAN_UP_INTERVAL = 3600.0  # seconds
_FLUSH_LIMIT = 5.0
_CANCEL_RETRY = 3.0  # longer than it takes to close a connection


class Agent:
    """One agent of a workstation. `run` runs it until `stop`."""

    kind: ClassVar[AgentKind]

    def __init__(self, settings: AgentSettings, rules: Rules, user: str = "") -> None:
        """Open the agent's folder, and connect its components.

        Raises:
            StateError: the state directory cannot be used, or the agent is already running.
            WrongSetting: the folder of trusted keys cannot be used.
        """
        trust = Trust.from_settings(settings)
        self._settings = settings
        self.identity = Identity(self.kind, settings.workstation, user)
        state_dir = shared_directory(settings.state_dir)
        check_state_directory(state_dir, service=self.kind is AgentKind.SERVICE)
        self.directory = private_directory(state_dir / agent_word(self.identity.name))
        self._lock = lock_directory(self.directory)
        self._sealing = Sealing(self.directory, f"{self.identity.name}@{settings.workstation}")
        caught_up = asyncio.Event()
        caught_up.set()

        self._ledger = Ledger(self.directory / "ledger.db")
        self._outbox = Outbox(self.identity, self._ledger)
        self._tasks = BackgroundTasks()
        self.changes = Changes()
        self._jobs = JobPipeline(
            settings,
            self.identity,
            rules,
            self.directory,
            self._ledger,
            self._outbox,
            self._sealing,
            self.changes,
            self._tasks,
            caught_up,
        )
        machine = identify(self.directory)
        self._heartbeat = Heartbeat(
            settings,
            self.identity,
            self._jobs.open_jobs,
            self._jobs.executor,
            self._jobs.pause,
            self._sealing.public,
            machine,
        )
        self._jobs.open_jobs.on_clock_changed.append(self._heartbeat.clock_changed)
        recovery = Recovery(self.identity, settings, self._ledger, trust, self._jobs.admission)
        self._orders = OrderStore(
            self.identity,
            settings,
            self._ledger,
            self._outbox,
            recovery,
            trust,
            self._jobs.admission,
            self._jobs.cancellations,
            self._jobs.pause,
        )
        self._session = BrokerSession(
            settings,
            self.identity,
            self._ledger,
            self.changes,
            self._inbox(trust, caught_up),
            self._outbox,
            self._heartbeat,
            recovery,
            Standby(self.identity, machine, self._outbox, self._heartbeat),
        )
        self._stopping = asyncio.Event()
        self._stops_now = False

    def _inbox(self, trust: Trust | None, caught_up: asyncio.Event) -> Inbox:
        return Inbox(
            self.identity,
            self._settings,
            self._ledger,
            self._jobs.claims,
            self._outbox,
            trust,
            self._orders,
            caught_up,
        )

    def stop(self) -> None:
        """Stop, and let running commands finish within the drain time; a second call kills them."""
        self._stops_now = self._stopping.is_set()
        self._stopping.set()
        if self._stops_now:
            self._jobs.executor.kill()

    async def run(self) -> None:
        """Run until stopped."""
        try:
            async with self._tasks.group as tasks:
                await self._check_name()
                self._restore()
                session = tasks.create_task(self._session.run())
                components = [
                    tasks.create_task(work)
                    for work in (
                        self._jobs.scheduler.run(),
                        self._serve(),
                        self._clean_up(),
                        reap_orphans(),
                    )
                ]
                workers = tasks.create_task(self._jobs.workers.run(self._settings.concurrency))
                paused = self._jobs.pause.paused or None
                _log.info(
                    "agent.started", groups=facts.groups_with_facts(self._settings), paused=paused
                )
                await self._stopping.wait()
                _log.info("agent.stopping", running=self._jobs.executor.count)
                self._session.stop_intake()
                self._jobs.workers.stop()
                for task in components:
                    task.cancel()
                await self._drain()
                workers.cancel()
                self._tasks.cancel()
                await self._cancel_session(session)
        finally:
            self._jobs.close()
            self._ledger.close()
            self._jobs.claims.close()
            _log.info("agent.stopped")

    async def _check_name(self) -> None:
        """Report the jobs of a former name of this workstation under that name."""
        identity = self.identity
        rename = partial(
            Transaction.rename,
            workstation=identity.workstation,
            reports=not self._settings.enrolled,
        )
        former = await self._ledger.commit(rename)
        identity.former_names.update(await self._ledger.commit(Transaction.former_names))
        if not former:
            return
        queue = queue_name(identity.kind, former, identity.user)
        _log.warning(
            "workstation.renamed",
            former=former,
            queue=queue,
            reason=f"{former} is named {identity.workstation} now; jobs in {queue} do not reach it:"
            f" if no other machine is named {former}, pcm forget {former}",
        )

    def _restore(self) -> None:
        """Restore the pause and the open jobs from the ledger."""
        metadata, records = self._ledger.load()
        self._jobs.pause.restore(metadata.pause)
        self._jobs.executor.remove_spools({record.job.id for record in records})
        if not metadata.damage:  # else `Recovery` opens the jobs after it read the stream
            self._jobs.admission.restore(records, metadata.seen_at)

    async def _serve(self) -> None:
        """Answer requests to this agent on its workstation."""

    def _shutdown_grace(self) -> float:
        """Return for how many seconds commands may continue when the agent stops."""
        return self._settings.drain.total_seconds()

    async def _drain(self) -> None:
        """Wait for the running commands, stop the rest, and send the reports."""
        await self._jobs.executor.drain(self._shutdown_grace())
        with suppress(TimeoutError):
            async with timeout(_FLUSH_LIMIT):
                await self._ledger.commit(lambda _: None)  # earlier changes are on the disk then
                if not self._stops_now:
                    await self._outbox.drain()
                    await self._heartbeat.send_final()
                return
        _log.warning("outbox.unsent", reason="reports are sent at the next start")

    @staticmethod
    async def _cancel_session(session: asyncio.Task[None]) -> None:
        """Cancel until done: the AMQP library can swallow a cancellation, as 3.11's wait_for."""
        while not session.done():
            session.cancel()
            await asyncio.wait({session}, timeout=_CANCEL_RETRY)

    async def _clean_up(self) -> None:
        """Delete ended jobs after the retention, so that the ledger does not grow without limit."""
        settings = self._settings
        retention = settings.keep.total_seconds()
        while True:
            remove_empty(settings.workstation)
            now = time.time()
            mark = partial(
                Transaction.mark_running,
                now=now,
                windows=str(settings.windows),
                countdown=settings.countdown.total_seconds(),
                takeover_grace=settings.takeover_grace.total_seconds(),
            )
            await self._ledger.commit(mark)
            began = time.monotonic()
            delete_ended = partial(Transaction.delete_ended, before=now - retention)
            while await self._ledger.commit(delete_ended):
                await asyncio.sleep(time.monotonic() - began)  # delete half of the time at most
                began = time.monotonic()
            await self._jobs.job_claims.forget(now - retention)
            await asyncio.sleep(min(_CLEAN_UP_INTERVAL, retention / 4))
