"""Connects the components of an agent, and starts and stops them.

The components are a pipeline: inbox, ledger, scheduler, claims, executor, outbox. Each stores its
result in the ledger, so that an agent can recover from a crash at any step.
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import ClassVar

from agents import facts
from agents.changes import Changes
from agents.claims.claims import Claims
from agents.claims.standings import Standings
from agents.content.contents import Contents
from agents.execution.processes.cgroup import remove_empty
from agents.execution.processes.subreaper import reap_orphans
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.inbox.consumer import Inbox
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.clock import Clock
from agents.jobs.executor import Executor
from agents.jobs.job_claims import JobClaims
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.jobs.scheduler import Scheduler
from agents.jobs.workers import Workers
from agents.machine import identify
from agents.outbox import Outbox
from agents.packages.inventory import Inventory
from agents.session.broker_session import BrokerSession
from agents.session.heartbeat import Heartbeat
from agents.session.standby import Standby
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.state_folder import (
    CONTENT,
    COPIES,
    check_state_directory,
    content_directories,
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
        if self.kind is AgentKind.SERVICE:
            content_directories(state_dir)
        self.directory = private_directory(state_dir / agent_word(self.identity.name))
        self._lock = lock_directory(self.directory)
        self._sealing = Sealing(self.directory, f"{self.identity.name}@{settings.workstation}")
        caught_up = asyncio.Event()
        caught_up.set()

        self._ledger = Ledger(self.directory / "ledger.db")
        self._claims = Claims(settings.state_dir, self.identity.name)
        self._outbox = Outbox(self.identity, self._ledger)
        self._tasks = BackgroundTasks()
        self.changes = Changes()
        self.open_jobs = OpenJobs(
            self.identity, self._ledger, self._claims, self._outbox, self.changes, Clock()
        )
        self._standings = Standings(state_dir, self.identity)
        self._job_claims = JobClaims(
            settings, self.identity, self._claims, self.open_jobs, self._standings
        )
        is_service = self.kind is AgentKind.SERVICE
        copies = state_dir / CONTENT / COPIES if is_service else self.directory / COPIES
        self._contents = Contents(
            settings,
            copies,
            trust.manifest_objection if trust else lambda _: "",
            self._tasks,
            self._packages_ready,
            self._packages_changed,
            is_service=is_service,
        )
        self.open_jobs.on_closed.append(self._contents.forget)
        self._inventory = Inventory(self._ledger, self._packages_changed)
        self._pause = PauseState(self.open_jobs, self.changes)
        self._executor = Executor(
            settings,
            self.identity,
            self.open_jobs,
            self._outbox,
            self.directory / "runs",
            self._sealing,
            self._contents,
            self._inventory,
            copies,
        )
        self._scheduler = Scheduler(
            settings,
            self.identity,
            rules,
            self.open_jobs,
            self._job_claims,
            self._pause,
            self._sealing,
            self._contents,
            self.changes,
            self._tasks,
            caught_up,
        )
        self._workers = Workers(self._scheduler, self.open_jobs, self._job_claims, self._executor)
        cancellations = Cancellations(self.open_jobs, self._executor)
        self._admission = Admission(
            settings,
            self.identity,
            self.open_jobs,
            self._claims,
            self._scheduler,
            self._executor,
            cancellations,
            self._contents,
            self._tasks,
        )
        recovery = Recovery(self.identity, settings, self._ledger, trust, self._admission)
        self._inbox = Inbox(
            self.identity,
            settings,
            self._ledger,
            self._claims,
            self._outbox,
            recovery,
            trust,
            self._admission,
            cancellations,
            self._pause,
            caught_up,
        )
        machine = identify(self.directory)
        self._heartbeat = Heartbeat(
            settings,
            self.identity,
            self.open_jobs,
            self._executor,
            self._pause,
            self._contents,
            self._inventory,
            self._sealing.public,
            machine,
        )
        self.open_jobs.on_clock_changed.append(self._heartbeat.clock_changed)
        self._session = BrokerSession(
            settings,
            self.identity,
            self._ledger,
            self.changes,
            self._inbox,
            self._outbox,
            self._heartbeat,
            recovery,
            Standby(self.identity, machine, self._outbox, self._heartbeat),
        )
        self._stopping = asyncio.Event()
        self._stops_now = False

    def _packages_ready(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self.open_jobs.wake(job_id)

    def _packages_changed(self) -> None:
        self.changes.notify()
        self._heartbeat.packages_changed()

    def stop(self) -> None:
        """Stop, and let running commands finish within the drain time; a second call kills them."""
        self._stops_now = self._stopping.is_set()
        self._stopping.set()
        if self._stops_now:
            self._executor.kill()

    async def run(self) -> None:
        """Run until stopped."""
        try:
            async with self._tasks.group as tasks:
                await self._check_name()
                await self._inventory.restore()
                self._restore()
                session = tasks.create_task(self._session.run())
                components = [
                    tasks.create_task(work)
                    for work in (
                        self._scheduler.run(),
                        self._serve(),
                        self._clean_up(),
                        self._executor.detect_packages(),
                        reap_orphans(),
                    )
                ]
                workers = tasks.create_task(self._workers.run(self._settings.concurrency))
                paused = self._pause.paused or None
                _log.info("agent.started", groups=facts.groups(self._settings), paused=paused)
                await self._stopping.wait()
                _log.info("agent.stopping", running=self._executor.count)
                self._session.stop_intake()
                self._workers.stop()
                for task in components:
                    task.cancel()
                await self._drain()
                workers.cancel()
                self._tasks.cancel()
                await self._cancel_session(session)
        finally:
            self._executor.close()
            self._job_claims.close()
            self._ledger.close()
            self._claims.close()
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
        self._pause.restore(metadata.pause)
        self._executor.remove_spools({record.job.id for record in records})
        if not metadata.damage:  # else `Recovery` opens the jobs after it read the stream
            self._admission.restore(records, metadata.seen_at)

    async def _serve(self) -> None:
        """Answer requests to this agent on its workstation."""

    def _shutdown_grace(self) -> float:
        """Return for how many seconds commands may continue when the agent stops."""
        return self._settings.drain.total_seconds()

    async def _drain(self) -> None:
        """Wait for the running commands, stop the rest, and send the reports."""
        await self._executor.drain(self._shutdown_grace())
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
            await self._job_claims.forget(now - retention)
            await asyncio.sleep(min(_CLEAN_UP_INTERVAL, retention / 4))
