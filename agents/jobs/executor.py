"""Runs an agent's commands: records their starts and ends, and stops them with the agent."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agents.content.contents import Contents
from agents.execution.command_run import CommandRun, LeftRunning, Outcome, Place
from agents.execution.environment import command_environment
from agents.execution.live_output import LiveOutput
from agents.execution.processes.orphans import OrphanedProcess, find
from agents.execution.script import place_script
from agents.execution.sealing import CannotOpen, Sealing
from agents.execution.spawn import CannotStart, owners_of
from agents.execution.spool import is_spooled, spooled
from agents.identity import Identity
from agents.jobs.open_jobs import OpenJobs
from agents.outbox import Outbox
from agents.packages.inventory import Inventory
from agents.settings import AgentSettings
from agents.store.threads import ThreadPool
from agents.store.transaction import JobRecord
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from broker.log import get_logger
from schemas import Command, Job, Result, State
from schemas.orders.package import PackageReference
from schemas.policy import MAX_STARTS

if TYPE_CHECKING:
    from agents.packages.package_run import Locks, PackageRun

    Run = CommandRun | PackageRun
    """The run of a job."""

_log = get_logger()
_NO_RESOURCES_LIMIT = 60.0  # seconds; the start is retried while files or processes run out
_NO_RESOURCES_PAUSE = 1.0
_STOP_LIMIT = 10.0
_STOPPED = "the agent was stopped"
_ENDED = "the agent ended while it ran"


class Executor:
    """Runs commands and updates their jobs in the ledger."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        open_jobs: OpenJobs,
        outbox: Outbox,
        spools: Path,
        sealing: Sealing,
        contents: Contents,
        inventory: Inventory,
        copies: Path,
    ) -> None:
        self._sealing = sealing
        self._outbox = outbox
        self._settings = settings
        self._identity = identity
        self._open_jobs = open_jobs
        self._spools = spools
        self._environment = command_environment(session=identity.kind is AgentKind.INTERACTIVE)
        self._threads = ThreadPool(settings.concurrency, "start")
        self._contents = contents
        self._inventory = inventory
        self._copies = copies
        self._running: dict[str, Run] = {}
        self._locks: Locks | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        """Number of running commands."""
        return len(self._running)

    def has(self, job_id: str) -> bool:
        """Whether a job's command runs or is about to start."""
        return job_id in self._running

    def cancel(self, job_id: str, reason: str) -> None:
        """Stop the command of a cancelled job, if it runs."""
        if run := self._running.get(job_id):
            run.stop(State.CANCELLED, reason or "cancelled")

    def started(self) -> dict[str, float]:
        """Return the start time of each running command, by job id."""
        return {job_id: run.started_at for job_id, run in self._running.items()}

    def live(self, job_id: str) -> LiveOutput | None:
        """Return a running command's live output for its user; None if it does not run."""
        return run.live if (run := self._running.get(job_id)) else None

    def _open_live_output(self, record: JobRecord) -> LiveOutput | None:
        if self._identity.kind is not AgentKind.INTERACTIVE:
            return None
        spool = self._spools / record.job.id
        return LiveOutput(spool if is_spooled(record.job.command) else None)

    async def drain(self, grace: float) -> None:
        """Let commands run for `grace` seconds, then stop them; return when all have ended."""
        try:
            async with timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            for run in self._running.values():
                run.quit(_STOPPED)
            # Exceeded only if the ledger cannot store the ends or a process cannot be killed.
            limit = self._settings.stop_grace.total_seconds() + _STOP_LIMIT
            with suppress(TimeoutError):
                async with timeout(limit):
                    await self._idle.wait()

    def kill(self) -> None:
        """Kill all commands immediately."""
        for run in list(self._running.values()):
            run.quit(_STOPPED)
            run.kill()

    def close(self) -> None:
        """Kill the commands that still run after a failure, and end the threads."""
        self.kill()
        self._threads.close()

    def remove_spools(self, still_open: set[str]) -> None:
        """Remove the spooled output of jobs that are not open."""
        with suppress(FileNotFoundError):
            for folder in self._spools.iterdir():
                if folder.name not in still_open:
                    shutil.rmtree(folder, ignore_errors=True)
        self._contents.remove_old_copies(still_open)

    @contextmanager
    def register(
        self, record: JobRecord, adopt: tuple[OrphanedProcess, float] | None = None
    ) -> Iterator["Run"]:
        """Register a run, so that it can be cancelled."""
        job_id = record.job.id
        live = self._open_live_output(record)
        run: Run
        if record.job.package is not None and adopt is None:
            run = self._package_run(record.job, record.job.package, live)
        else:
            script = record.job.command.script
            place = partial(place_script, self._copies / job_id) if script and not adopt else None
            open_secrets = partial(self._sealing.open, record.job.command)
            run = self._command_run(job_id, record.job.command, place, adopt, live, open_secrets)
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

    def _command_run(
        self,
        job_id: str,
        command: Command,
        place: Place | None,
        adopt: tuple[OrphanedProcess, float] | None = None,
        live: LiveOutput | None = None,
        open_secrets: Callable[[], Mapping[str, str]] | None = None,
    ) -> CommandRun:
        return CommandRun(
            command,
            job_id,
            self._settings.workstation,
            self._settings.output_limit,
            self._settings.stop_grace.total_seconds(),
            self._environment,
            self._spools / job_id,
            partial(self._record_process, job_id),
            adopt,
            live,
            open_secrets or dict,
            self._threads.submit,
            place,
        )

    def _package_run(
        self, job: Job, reference: PackageReference, live: LiveOutput | None
    ) -> "PackageRun":
        from agents.packages.package_run import PackageRun

        def make_run(command: Command, place: Place, *, own: bool) -> CommandRun:
            given = live if own else None
            secrets = partial(self._sealing.open, job.command) if own else None
            return self._command_run(job.id, command, place, live=given, open_secrets=secrets)

        is_user = self._identity.kind is AgentKind.INTERACTIVE
        locks = self._package_locks()
        run = PackageRun(job, reference, make_run, self._inventory, locks, as_user=is_user)
        run.live = live
        return run

    async def detect_packages(self) -> None:
        """Find out daily what of the packages that ran is still there, until cancelled."""
        while not self._inventory.all():
            self._inventory.changed.clear()
            await self._inventory.changed.wait()
        from agents.packages.detection import Detection

        def make_run(command: Command, place: Place, *, own: bool) -> CommandRun:  # noqa: ARG001 - as another's
            return self._command_run("detection", command, place)

        await Detection(
            self._inventory,
            self._contents,
            self._package_locks(),
            make_run,
            self._threads,
            as_user=self._identity.kind is AgentKind.INTERACTIVE,
        ).run()

    def _package_locks(self) -> "Locks":
        from agents.packages.package_run import Locks

        if self._locks is None:
            self._locks = Locks()
        return self._locks

    async def prepare(self, record: JobRecord, run: "Run") -> tuple[State, str] | None:
        """Check what a job needs to start, and verify its packages.

        Returns:
            None if it can start; else a final state and the reason, or RECEIVED: it waits again.
        """
        if record.job.only_if is not None and not record.starts:
            from agents.packages.preparation import condition_objection

            if reason := condition_objection(record, self._inventory):
                return State.NOT_APPLICABLE, reason
        if record.job.package is None or isinstance(run, CommandRun):
            return None
        from agents.packages.preparation import prepare

        obstacle = await prepare(record, run, self._contents, self._inventory, self._threads)
        return run.stopped or obstacle

    def _record_process(self, job_id: str, identity: str) -> None:
        if job_id in self._running and (record := self._open_jobs.get(job_id)):
            self._open_jobs.change(record, process=identity)

    async def complete(self, job_id: str, run: "Run") -> None:
        """Start a job's command and wait for its end."""
        if (record := self._open_jobs.get(job_id)) is None:
            return
        notes = (f"again: {_ENDED}" if record.starts else "", self._contents.note(job_id))
        reason = "; ".join(filter(None, notes))
        # At most once: the start is on the disk before the command starts.
        await self._open_jobs.change(
            record,
            self._identity.report(job_id, State.STARTED, reason),
            starts=record.starts + 1,
            process="",
        )
        _log.info("job.started", job=job_id, name=record.job.title)
        await self._run_to_end(job_id, run)

    async def resume_after_restart(self, record: JobRecord) -> None:
        """Resume a command that was running when a former run of this agent ended."""
        job_id = record.job.id
        orphan = await self._find_orphan(record)
        if record.job.command.survives_agent and orphan.process is not None:
            _log.info("job.found", job=job_id, process=orphan.process)
            with self.register(record, (orphan, orphan.age())) as run:
                await self._run_to_end(job_id, run)
            return
        reason = _ENDED
        # If its first process has ended, the rest is what the job wants to leave.
        is_left = orphan.process is None and record.job.command.leaves_processes
        if not is_left and await orphan.tree.end(self._settings.stop_grace.total_seconds()):
            reason += "; its remaining processes were stopped"
        output = await self._spooled_output(record)
        if record := self._open_jobs.get(job_id) or record:
            self._end(record, Outcome(State.INTERRUPTED, output, reason))

    async def _find_orphan(self, record: JobRecord) -> OrphanedProcess:
        """Find a command's remaining processes; retried while files or threads run out."""
        is_logged = False
        while True:
            try:
                owners = owners_of(record.job.command)
                name = self._identity.workstation_of(record.job.id)
                search = partial(find, name, record.job.id, record.process)
                return await asyncio.to_thread(search, owners)
            except (OSError, RuntimeError) as problem:
                if not is_logged:
                    _log.warning("job.held_back", job=record.job.id, reason=str(problem))
                    is_logged = True
            await asyncio.sleep(_NO_RESOURCES_PAUSE)

    async def _spooled_output(self, record: JobRecord) -> Result | None:
        spool = self._spools / record.job.id
        if not spool.is_dir():
            return None
        stdout, stderr = await spooled(spool, self._settings.output_limit)
        return Result(duration=timedelta(0), max_memory=0, stdout=stdout, stderr=stderr)

    async def _run_to_end(self, job_id: str, run: "Run") -> None:
        with suppress(LeftRunning):  # this agent's next start resumes it
            outcome = await self._outcome(run)
            if run.live:
                run.live.close()  # before its files are removed
            if record := self._open_jobs.get(job_id):
                self._end(record, outcome)

    async def _outcome(self, run: "Run") -> Outcome:
        deadline = time.monotonic() + _NO_RESOURCES_LIMIT
        is_logged = False
        while True:
            try:
                return await run.complete()
            except (CannotStart, CannotOpen) as problem:
                return Outcome(State.FAILED, None, str(problem))
            except OSError as problem:  # not started: files or processes ran out
                if time.monotonic() >= deadline:
                    return Outcome(State.FAILED, None, str(problem))
                if not is_logged:
                    _log.warning("job.held_back", job=run.job_id, reason=str(problem))
                    is_logged = True
            await asyncio.sleep(_NO_RESOURCES_PAUSE)

    def _end(self, record: JobRecord, outcome: Outcome) -> None:
        """Record a command's outcome, or that it is to be started again."""
        if (
            outcome.state is State.INTERRUPTED
            and record.job.command.rerun_interrupted
            and record.starts < MAX_STARTS
        ):
            _log.info(
                "job.interrupted", job=record.job.id, reason=outcome.reason, starts=record.starts
            )
            self._open_jobs.change(record, process="")
            return
        self._open_jobs.end(record, outcome.state, outcome.reason, outcome.result)
        if is_spooled(record.job.command):
            shutil.rmtree(self._spools / record.job.id, ignore_errors=True)
        if record.job.package is not None or record.job.command.script is not None:
            self._threads.submit(lambda: self._contents.remove_copies(record.job.id))
