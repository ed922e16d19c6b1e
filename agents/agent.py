"""An agent: its parts, and its life from start to stop.

The parts are one pipeline: inbox, ledger, scheduler, claims, executor, outbox. The ledger stands
between them, so that a crash between any two is recovered from.
"""

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import ClassVar

from agents import facts
from agents.changes import Changes
from agents.claims.claims import Claims
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.inbox.consumer import Inbox
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.executor import Executor
from agents.jobs.job_claims import JobClaims
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.jobs.scheduler import Scheduler
from agents.jobs.workers import Workers
from agents.outbox import Outbox
from agents.session.broker_session import BrokerSession
from agents.session.heartbeat import Heartbeat
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.state_folder import check, lock, private_directory, shared_directory
from agents.store.transaction import Transaction
from agents.tasks import BackgroundTasks
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind, login
from broker.log import get_logger
from schemas.policy import Rules

_log = get_logger()
_HOUSEKEEPING = 3600.0  # seconds
_FLUSH_LIMIT = 5.0
_CANCEL_AGAIN = 3.0  # longer than closing a connection may take


class Agent:
    """One agent of a workstation. `run` runs it until `stop`."""

    kind: ClassVar[AgentKind]

    def __init__(self, settings: AgentSettings, rules: Rules, user: str = "") -> None:
        """Open the agent's folder, and connect its parts.

        Raises:
            StateError: the state directory cannot be used, or the agent runs already.
            WrongSetting: the folder of trusted keys cannot be used.
        """
        trust = Trust.by(settings)
        self._settings = settings
        self.identity = Identity(self.kind, settings.workstation, user)
        state_dir = shared_directory(settings.state_dir)
        check(state_dir, service=self.kind is AgentKind.SERVICE)
        self.directory = private_directory(state_dir / self.identity.name)
        self._lock = lock(self.directory)
        sealing = Sealing(self.directory, login(self.kind, settings.workstation, user))
        caught_up = asyncio.Event()
        caught_up.set()

        self._ledger = Ledger(self.directory / "ledger.db")
        self._claims = Claims(settings.state_dir, self.identity.name)
        self._outbox = Outbox(self.identity, self._ledger)
        self._tasks = BackgroundTasks()
        self.changes = Changes()
        self.open_jobs = OpenJobs(
            self.identity, self._ledger, self._claims, self._outbox, self.changes
        )
        self._job_claims = JobClaims(settings, self.identity, self._claims, self.open_jobs)
        self._pause = PauseState(self.open_jobs, self.changes)
        self._executor = Executor(
            settings, self.identity, self.open_jobs, self._outbox, self.directory / "runs", sealing
        )
        self._scheduler = Scheduler(
            settings,
            self.identity,
            rules,
            self.open_jobs,
            self._job_claims,
            self._pause,
            sealing,
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
            self._tasks,
        )
        recovery = Recovery(self.identity, settings, self._ledger, trust, self._admission)
        inbox = Inbox(
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
        self._heartbeat = Heartbeat(
            settings, self.identity, self.open_jobs, self._executor, self._pause, sealing.public
        )
        self._session = BrokerSession(
            settings,
            self.identity,
            self._ledger,
            self.changes,
            inbox,
            self._outbox,
            self._heartbeat,
            recovery,
        )
        self._stopping = asyncio.Event()
        self._at_once = False

    def stop(self) -> None:
        """Stop: let running commands finish within the drain time; called again, at once."""
        self._at_once = self._stopping.is_set()
        self._stopping.set()
        if self._at_once:
            self._executor.kill()

    async def run(self) -> None:
        """Work until stopped."""
        try:
            async with self._tasks.group as tasks:
                self._restore()
                session = tasks.create_task(self._session.run())
                others = [
                    tasks.create_task(work)
                    for work in (self._scheduler.run(), self._serve(), self._keep_house())
                ]
                workers = tasks.create_task(self._workers.run(self._settings.concurrency))
                paused = self._pause.paused or None
                _log.info("agent.started", groups=facts.groups(self._settings), paused=paused)
                await self._stopping.wait()
                _log.info("agent.stopping", running=self._executor.count)
                self._session.stop_intake()
                self._workers.stop()
                for task in others:
                    task.cancel()
                await self._drain()
                workers.cancel()
                self._tasks.cancel()
                await self._end(session)
        finally:
            self._executor.close()
            self._job_claims.close()
            self._ledger.close()
            self._claims.close()
            _log.info("agent.stopped")

    def _restore(self) -> None:
        """Take up the ledger where a former run of this agent left it."""
        metadata, records = self._ledger.load()
        self._pause.restore(metadata.pause)
        self._executor.tidy({record.job.id for record in records})
        if not metadata.damage:  # else nothing of it is trusted before the stream was read
            self._admission.restore(records, metadata.seen_at)

    async def _serve(self) -> None:
        """Answer requests to this agent on its workstation."""

    def _shutdown_grace(self) -> float:
        """Return for how many seconds running commands may go on when the agent stops."""
        return self._settings.drain.total_seconds()

    async def _drain(self) -> None:
        """Let what runs end, end what does not, and send the reports."""
        await self._executor.drain(self._shutdown_grace())
        with suppress(TimeoutError):
            async with timeout(_FLUSH_LIMIT):
                await self._ledger.commit(lambda _: None)  # all before it is on the disk
                if not self._at_once:
                    await self._outbox.drained()
                    await self._heartbeat.send_final()
                return
        _log.warning("outbox.waits", reason="reports are sent at the next start")

    @staticmethod
    async def _end(session: asyncio.Task[None]) -> None:
        """Cancel until it has ended: the AMQP library may swallow it, as wait_for of 3.11 does."""
        while not session.done():
            session.cancel()
            await asyncio.wait({session}, timeout=_CANCEL_AGAIN)

    async def _keep_house(self) -> None:
        """Remove what ended long ago, so that nothing grows without limit."""
        retention = self._settings.keep.total_seconds()
        while True:
            now = time.time()
            windows = str(self._settings.windows)
            await self._ledger.commit(partial(Transaction.seen, now=now, windows=windows))
            began = time.monotonic()
            while await self._ledger.commit(partial(Transaction.forget, before=now - retention)):
                await asyncio.sleep(time.monotonic() - began)  # leaves half of the time to jobs
                began = time.monotonic()
            await self._job_claims.forget(now - retention)
            await asyncio.sleep(min(_HOUSEKEEPING, retention / 4))
