"""The commands that an agent runs now: their starts and ends on record, stopped when it stops."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from agents.execution.command_run import CommandRun, LeftRunning, Outcome
from agents.execution.environment import command_environment
from agents.execution.live_output import LiveOutput
from agents.execution.orphans import OrphanedProcess, find
from agents.execution.output import spooled
from agents.execution.sealing import CannotOpen, Sealing
from agents.execution.spawn import CannotStart, owners_of
from agents.identity import Identity
from agents.jobs.open_jobs import OpenJobs
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.threads import Threads
from agents.store.transaction import JobRecord
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from broker.log import get_logger
from schemas import Result, State

_log = get_logger()
MOST_STARTS = 5
"""So that a command that ends its own agent or machine does not do so for ever."""
_NO_ROOM_LIMIT = 60.0  # seconds for which a start is tried where files or processes are used up
_NO_ROOM_PAUSE = 1.0
_STOP_LIMIT = 10.0
_STOPPED = "the agent was stopped"
_ENDED = "the agent ended while it ran"


class Executor:
    """Executor commands, and keeps the ledger's entries in step."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        open_jobs: OpenJobs,
        outbox: Outbox,
        spools: Path,
        sealing: Sealing,
    ) -> None:
        self._sealing = sealing
        self._outbox = outbox
        self._settings = settings
        self._identity = identity
        self._open_jobs = open_jobs
        self._spools = spools
        self._environment = command_environment(session=identity.kind is AgentKind.INTERACTIVE)
        self._threads = Threads(settings.concurrency, "start")
        self._running: dict[str, CommandRun] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        """How many run now."""
        return len(self._running)

    def has(self, job_id: str) -> bool:
        """Whether a job is running, or about to."""
        return job_id in self._running

    def cancel(self, job_id: str, reason: str) -> None:
        """End a job's command, if it runs: it is not wanted any more."""
        if run := self._running.get(job_id):
            run.stop(State.CANCELLED, reason or "cancelled")

    def started(self) -> dict[str, float]:
        """Return when each running command was started, by job."""
        return {job_id: run.started_at for job_id, run in self._running.items()}

    def live(self, job_id: str) -> LiveOutput | None:
        """Return what a running command writes, for its user to see; None if it does not run."""
        return run.live if (run := self._running.get(job_id)) else None

    def _live(self, entry: JobRecord) -> LiveOutput | None:
        if self._identity.kind is not AgentKind.INTERACTIVE:
            return None
        spool = self._spools / entry.job.id
        return LiveOutput(spool if entry.job.command.survives_agent else None)

    async def drain(self, patience: float) -> None:
        """Let what runs go on for so many seconds, then stop it; return when all has ended."""
        try:
            async with timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            for run in self._running.values():
                run.quit(_STOPPED)
            # Longer only if the ledger cannot take their ends, or the kernel does not let go.
            limit = self._settings.stop_grace.total_seconds() + _STOP_LIMIT
            with suppress(TimeoutError):
                async with timeout(limit):
                    await self._idle.wait()

    def kill(self) -> None:
        """End all at once."""
        for run in list(self._running.values()):
            run.quit(_STOPPED)
            run.kill()

    def close(self) -> None:
        """Let go of the threads; what still runs, because something failed, is ended."""
        self.kill()
        self._threads.close()

    def tidy(self, wanted: set[str]) -> None:
        """Remove what was written by commands of jobs that are not open any more."""
        with suppress(FileNotFoundError):
            for folder in self._spools.iterdir():
                if folder.name not in wanted:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def register(
        self, entry: JobRecord, adopt: tuple[OrphanedProcess, float] | None = None
    ) -> Iterator[CommandRun]:
        """Count a run as running; it can be cancelled from now on."""
        job_id = entry.job.id
        run = CommandRun(
            entry.job.command,
            job_id,
            self._settings.workstation,
            self._settings.output_limit,
            self._settings.stop_grace.total_seconds(),
            self._environment,
            self._spools / job_id,
            partial(self._lasts, job_id),
            adopt,
            self._live(entry),
            partial(self._sealing.open, entry.job.command),
            self._threads.call,
        )
        self._running[job_id] = run
        self._idle.clear()
        try:
            with self._outbox.expecting_more():
                yield run
        finally:
            if run.live:
                run.live.close()
            del self._running[job_id]
            if not self._running:
                self._idle.set()

    def _lasts(self, job_id: str, mark: str) -> None:
        if job_id in self._running and (entry := self._open_jobs.get(job_id)):
            self._open_jobs.change(entry, process=mark)

    async def complete(self, job_id: str, run: CommandRun) -> None:
        """Start a job's command and see it to its end."""
        if (entry := self._open_jobs.get(job_id)) is None:
            return
        again = f"again: {_ENDED}" if entry.starts else ""
        # At most once: the start is on the disk before the command is.
        await self._open_jobs.change(
            entry,
            self._identity.report(job_id, State.STARTED, again),
            starts=entry.starts + 1,
            process="",
        )
        _log.info("job.started", job=job_id, name=entry.job.title)
        await self._see_through(job_id, run)

    async def resume_after_restart(self, entry: JobRecord) -> None:
        """Go on with a command that was started when a former run of this agent ended."""
        job_id = entry.job.id
        remains = await self._found(entry)
        if entry.job.command.survives_agent and remains.process is not None:
            _log.info("job.found", job=job_id, process=remains.process)
            with self.register(entry, (remains, remains.age())) as run:
                await self._see_through(job_id, run)
            return
        grace = self._settings.stop_grace.total_seconds()
        found = await remains.end(grace)
        output = await self._spooled(entry)
        if entry := self._open_jobs.get(job_id) or entry:
            reason = _ENDED + ("; what was left of it was ended" * found)
            self._end(entry, Outcome(State.INTERRUPTED, output, reason))

    async def _found(self, entry: JobRecord) -> OrphanedProcess:
        """Look for what is left of a command, as soon as there are files and threads for that."""
        told = False
        while True:
            try:
                owners = owners_of(entry.job.command)
                return await asyncio.to_thread(find, entry.job.id, entry.process, owners)
            except (OSError, RuntimeError) as problem:
                if not told:
                    _log.warning("job.held_back", job=entry.job.id, reason=str(problem))
                    told = True
            await asyncio.sleep(_NO_ROOM_PAUSE)

    async def _spooled(self, entry: JobRecord) -> Result | None:
        spool = self._spools / entry.job.id
        if not spool.is_dir():
            return None
        stdout, stderr = await spooled(spool, self._settings.output_limit)
        return Result(duration=timedelta(0), max_memory=0, stdout=stdout, stderr=stderr)

    async def _see_through(self, job_id: str, run: CommandRun) -> None:
        with suppress(LeftRunning):  # the next start of this agent finds it
            ended = await self._ended(run)
            if run.live:
                run.live.close()  # while its files are there
            if entry := self._open_jobs.get(job_id):
                self._end(entry, ended)

    async def _ended(self, run: CommandRun) -> Outcome:
        deadline = time.monotonic() + _NO_ROOM_LIMIT
        told = False
        while True:
            try:
                return await run.complete()
            except (CannotStart, CannotOpen) as problem:
                return Outcome(State.FAILED, None, str(problem))
            except OSError as problem:  # nothing was started: no file, no process was left
                if time.monotonic() >= deadline:
                    return Outcome(State.FAILED, None, str(problem))
                if not told:
                    _log.warning("job.held_back", job=run.job_id, reason=str(problem))
                    told = True
            await asyncio.sleep(_NO_ROOM_PAUSE)

    def _end(self, entry: JobRecord, ended: Outcome) -> None:
        """Write down how a command ended, or that it is to be started again."""
        if (
            ended.state is State.INTERRUPTED
            and entry.job.command.rerun_interrupted
            and entry.starts < MOST_STARTS
        ):
            _log.info("job.interrupted", job=entry.job.id, reason=ended.reason, starts=entry.starts)
            self._open_jobs.change(entry, process="")
            return
        self._open_jobs.end(entry, ended.state, ended.reason, ended.result)
        if entry.job.command.survives_agent:
            shutil.rmtree(self._spools / entry.job.id, ignore_errors=True)
