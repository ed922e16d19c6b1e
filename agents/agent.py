"""The pipeline that both agents are: intake, ledger, schedule, claim, run, outbox.

The ledger stands between the steps. What is in memory here is its mirror: a change is made in
memory at once and written in the order of the changes; what must not happen twice waits until
its record is on the disk.
"""

import asyncio
import heapq
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

import structlog

from agents.claims import UNKNOWN, Claims
from agents.intake import Identity, Intake
from agents.ledger import Entry, Ledger, Tables
from agents.outbox import Outbox
from agents.runner import CannotStart, Ended, Run, end_remains, inherited_environment
from agents.schedule import NEVER, Next, Step, order
from agents.settings import AgentSettings
from agents.state import lock, private_directory, shared_directory
from agents.uplink import Uplink
from broker.topology import AgentKind
from schemas import Cancellation, Context, Report, State

_log = structlog.get_logger()

_NOT_STARTED = frozenset(
    state
    for state in State
    if state.final
    and state not in (State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.INTERRUPTED)
)
_LONGEST_SLEEP = 60.0  # seconds; a clock that was set is noticed at the latest after these
_LOOK_AGAIN = 3600.0
_CLAIM_RETRY = 1.0
_FLUSH_LIMIT = 5.0


class Rules(Protocol):
    """Decides what is next for an entry."""

    def next(self, entry: Entry, now: float, *, claimed: bool) -> Next:
        """Return the next step and its time."""


class Agent:
    """One agent of a workstation. `run` runs it until `stop`."""

    kind: ClassVar[AgentKind]

    def __init__(self, settings: AgentSettings, rules: Rules, user: str = "") -> None:
        """Open the agent's folder.

        Raises:
            StateError: the state directory cannot be used, or the agent runs already.
        """
        self._settings = settings
        self._rules = rules
        self.identity = Identity(self.kind, settings.workstation, user)
        self.directory = private_directory(
            shared_directory(settings.state_dir) / self.identity.name
        )
        self._lock = lock(self.directory)
        self._ledger = Ledger(self.directory / "ledger.db")
        self._claims = Claims(settings.state_dir, self.identity.name)
        self._outbox = Outbox(self.identity, self._ledger)
        intake = Intake(
            self.identity,
            self._ledger,
            self._claims,
            accepted=self._accept,
            cancelled=self._cancel,
            stored=self._outbox.wake,
        )
        self._uplink = Uplink(settings, self.identity, self._ledger, intake, self._outbox)
        self.entries: dict[str, Entry] = {}
        self._due: list[tuple[float, str]] = []
        self._changed = asyncio.Event()
        self._busy: set[str] = set()
        self._ready: asyncio.PriorityQueue[tuple[tuple[float, float, str], str]] = (
            asyncio.PriorityQueue()
        )
        self._runs: dict[str, Run] = {}
        self._environment = inherited_environment()
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="run")
        self._blocked: dict[str, float] = {}
        self._tasks = asyncio.TaskGroup()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Event()
        self._at_once = False

    def stop(self) -> None:
        """Stop: let running commands finish within the drain time; called again, at once."""
        self._at_once = self._stopping.is_set()
        self._stopping.set()
        if self._at_once:
            for run in list(self._runs.values()):
                run.stop(State.INTERRUPTED, "the agent was stopped")
                run.kill()

    async def run(self) -> None:
        """Work until stopped."""
        try:
            await self._recover()
            async with self._tasks as tasks:
                uplink = tasks.create_task(self._uplink.run())
                others = [tasks.create_task(self._schedule())]
                others += [tasks.create_task(self._serve())]
                workers = [
                    tasks.create_task(self._work()) for _ in range(self._settings.concurrency)
                ]
                _log.info("agent.started", groups=list(self._settings.groups))
                await self._stopping.wait()
                _log.info("agent.stopping", running=len(self._runs))
                self._uplink.stop_intake()
                for task in others:
                    task.cancel()
                await self._drain()
                for task in [uplink, *workers]:
                    task.cancel()
        finally:
            for run in self._runs.values():  # only if something failed: nobody waits for them
                run.kill()
            self._threads.shutdown(wait=False)
            self._ledger.close()
            self._claims.close()
            _log.info("agent.stopped")

    async def _serve(self) -> None:
        """Answer those who speak to this agent on its workstation."""

    async def _drain(self) -> None:
        """Let what runs end, end what does not, and send what is to be reported."""
        try:
            async with asyncio.timeout(self._patience()):
                await self._idle.wait()
        except TimeoutError:
            for run in self._runs.values():
                run.stop(State.INTERRUPTED, "the agent was stopped")
            await self._idle.wait()
        await self._ledger.commit(lambda _: None)  # all before it is on the disk
        if not self._at_once:
            try:
                async with asyncio.timeout(_FLUSH_LIMIT):
                    await self._outbox.drained()
            except TimeoutError:
                _log.warning("outbox.waits", reason="reports are sent at the next start")

    def _patience(self) -> float:
        """Return for how many seconds running commands may go on when the agent stops."""
        return self._settings.drain.total_seconds()

    async def _recover(self) -> None:
        """Take up the ledger where a former run of this agent left it."""
        for entry in self._ledger.load():
            self.entries[entry.job.id] = entry
            if entry.state is State.STARTED:
                await self._interrupted(entry)
            else:
                self._wake(entry.job.id)

    async def _interrupted(self, entry: Entry) -> None:
        grace = self._settings.stop_grace.total_seconds()
        found = await asyncio.to_thread(end_remains, entry.job.id, grace)
        reason = "the agent ended while it ran" + ("; what was left of it was ended" * found)
        self._finish(entry, Ended(State.INTERRUPTED, None, reason))

    # What is next

    def _accept(self, entry: Entry) -> None:
        self.entries[entry.job.id] = entry
        _log.info("job.received", job=entry.job.id, name=entry.job.title)
        self._wake(entry.job.id)

    def _cancel(self, cancellation: Cancellation) -> None:
        entry = self.entries.get(cancellation.job_id)
        if entry is None or entry.cancelled is not None:
            return
        _log.info("job.cancelled", job=entry.job.id, reason=cancellation.reason)
        self._change(entry, None, cancelled=cancellation.reason)
        if run := self._runs.get(entry.job.id):
            run.stop(State.CANCELLED, cancellation.reason or "cancelled")

    def _wake(self, job_id: str, at: float = 0.0) -> None:
        heapq.heappush(self._due, (at, job_id))
        self._changed.set()

    async def _schedule(self) -> None:
        """Take each entry's next step when its time comes."""
        while True:
            now = time.time()
            while self._due and self._due[0][0] <= now:
                _, job_id = heapq.heappop(self._due)
                if (entry := self.entries.get(job_id)) and job_id not in self._busy:
                    self._advance(entry, now)
            self._changed.clear()
            sleep = min(self._due[0][0] - now, _LONGEST_SLEEP) if self._due else None
            try:
                async with asyncio.timeout(sleep):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _next(self, entry: Entry) -> Next:
        return self._rules.next(entry, time.time(), claimed=self._claims.holds(entry.job.id))

    def _advance(self, entry: Entry, now: float) -> None:
        following = self._next(entry)
        job_id = entry.job.id
        at = max(following.at, self._blocked.get(job_id, 0))
        if at > now:
            self._wait(entry, now, at)
        elif following.step is Step.OFFER:
            self._offer(entry, now)
        elif following.step is Step.ACCEPT:
            self.accept(entry, "the user accepts all offers")
        elif following.step is Step.COUNT_DOWN:
            if self._claims.take(job_id):
                self._wake(job_id)
            else:
                self._not_ours(entry)
        elif following.step is Step.RUN:
            self._busy.add(job_id)
            self._ready.put_nowait((order(entry), job_id))
        else:
            self._busy.add(job_id)
            self._tasks.create_task(self._close(entry, following))

    def _wait(self, entry: Entry, now: float, at: float) -> None:
        """Look at an entry again at its time; a user's job now and then, if others ended it."""
        if entry.job.context is Context.FOREGROUND:
            at = min(at, now + _LOOK_AGAIN)
            if (decision := self._claims.decision(entry.job.id)) and (
                decision.agent != self.identity.name
            ):
                self._not_ours(entry)
                return
        if at < NEVER:
            self._wake(entry.job.id, at)

    def _offer(self, entry: Entry, now: float) -> None:
        if self._claims.decision(entry.job.id):
            self._not_ours(entry)
            return
        self._change(
            entry,
            self.identity.report(entry.job.id, State.OFFERED),
            shown_at=entry.shown_at or now,
            until=None,
        )
        self.offered(self.entries[entry.job.id])
        self._wake(entry.job.id)

    def offered(self, entry: Entry) -> None:
        """Tell the user of an offer; an agent without a window says it in its log."""
        mandatory = entry.job.mandatory_at
        _log.info(
            "job.offered",
            job=entry.job.id,
            name=entry.job.title,
            mandatory_at=str(mandatory) if mandatory else None,
        )

    def accept(self, entry: Entry, reason: str = "") -> None:
        """The user wants the job run now."""
        self._change(entry, self.identity.report(entry.job.id, State.ACCEPTED, reason))
        self._wake(entry.job.id)

    def _not_ours(self, entry: Entry) -> None:
        """Another agent holds the claim, or it is decided: wait, or leave the job to it."""
        decision = self._claims.decision(entry.job.id)
        if decision is None:
            self._blocked[entry.job.id] = time.time() + _CLAIM_RETRY
            self._wake(entry.job.id)
        elif decision.agent == self.identity.name or self._inherits(decision.agent):
            # We decided, and ended before our ledger knew.
            state = State(decision.state) if decision.state in _NOT_STARTED else State.INTERRUPTED
            self._finish(entry, Ended(state, None, "the agent ended while it decided"))
        else:
            self._change(entry, None, open=False)

    def _inherits(self, agent: str) -> bool:
        """Whether this agent speaks for a claim whose holder cannot be read."""
        return agent == UNKNOWN and self.kind is AgentKind.SERVICE

    async def _close(self, entry: Entry, following: Next) -> None:
        """End a job that is not started, if it is ours to say so."""
        state = following.state or State.REFUSED
        try:
            if await self._decided(entry, state):
                self._finish(entry, Ended(state, None, following.reason))
            else:
                self._not_ours(entry)
        finally:
            self._busy.discard(entry.job.id)

    async def _decided(self, entry: Entry, state: State) -> bool:
        """Decide what becomes of a job; a background job is the service's without a claim."""
        if entry.job.context is Context.BACKGROUND:
            return True
        return await asyncio.to_thread(self._claims.decide, entry.job.id, state)

    # Running

    async def _work(self) -> None:
        """Run what is due, one after the other."""
        while True:
            _, job_id = await self._ready.get()
            try:
                if entry := self.entries.get(job_id):
                    following = self._next(entry)
                    if following.step is Step.RUN and not self._stopping.is_set():
                        await self._run(entry)
            finally:
                self._busy.discard(job_id)
                if job_id in self.entries:
                    self._wake(job_id)

    async def _run(self, entry: Entry) -> None:
        job = entry.job
        run = Run(
            job.command,
            job.id,
            self._settings.output_limit,
            self._settings.stop_grace.total_seconds(),
            self._environment,
        )
        self._runs[job.id] = run
        self._idle.clear()
        try:
            if await self._decided(entry, State.STARTED):
                self._finish(self.entries[job.id], await self._complete(entry, run))
            else:
                self._not_ours(entry)
        finally:
            del self._runs[job.id]
            if not self._runs:
                self._idle.set()

    async def _complete(self, entry: Entry, run: Run) -> Ended:
        # At most once: the start is on the disk before the command is.
        await self._change(entry, self.identity.report(entry.job.id, State.STARTED))
        _log.info("job.started", job=entry.job.id, name=entry.job.title)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, run.complete)
        except (CannotStart, OSError) as problem:  # such as: too many open files
            return Ended(State.FAILED, None, str(problem))

    # The record

    def _finish(self, entry: Entry, ended: Ended) -> None:
        final = self.identity.report(entry.job.id, ended.state, ended.reason, result=ended.result)
        exit_code = ended.result.exit_code if ended.result else None
        _log.info(
            "job.ended",
            job=entry.job.id,
            state=str(ended.state),
            exit_code=exit_code,
            reason=ended.reason or None,
        )
        self._change(entry, final, open=False, final=final)

    def _change(
        self, entry: Entry, report: Report | None, **changes: Any
    ) -> "asyncio.Future[None]":
        """Change an entry in memory now and in the ledger next, together with its report."""
        if report is not None:
            changes["state"] = report.state
        entry = replace(entry, **changes, changed_at=time.time())
        if entry.open:
            self.entries[entry.job.id] = entry
            if entry.job.id not in self._busy:
                self._wake(entry.job.id)
        else:
            self.entries.pop(entry.job.id, None)
            self._blocked.pop(entry.job.id, None)
            self._claims.release(entry.job.id)

        def write(tables: Tables) -> None:
            tables.save(entry)
            if report is not None:
                tables.report(report)

        future = self._ledger.commit(write)
        if report is not None:
            future.add_done_callback(lambda _: self._outbox.wake())
        return future


def instant(seconds: float) -> datetime:
    """Return seconds since the epoch as an instant."""
    return datetime.fromtimestamp(seconds, UTC)
