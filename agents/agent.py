"""The pipeline that both agents are: intake, ledger, schedule, claim, run, outbox.

The ledger stands between the steps, so that a crash between any two of them is recovered from.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Protocol

from agents import facts
from agents.changes import Changes
from agents.claims.claim_file import UNKNOWN, ClaimRecord
from agents.claims.claims import Claims
from agents.execution.command_run import Outcome
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.inbox.consumer import Inbox
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.cancellation import Cancellations
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.policy import Next, Step, order
from agents.jobs.takeover import Takeover
from agents.session.broker_session import BrokerSession
from agents.session.heartbeat import Heartbeat
from agents.session.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.state_folder import check, lock, private_directory, shared_directory
from agents.store.threads import Threads
from agents.store.transaction import JobRecord, Transaction
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind, login
from broker.log import get_logger
from schemas import Context, Pause, State
from schemas.times import NEVER

_log = get_logger()

_NOT_STARTED = frozenset(
    state
    for state in State
    if state.final
    and state not in (State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.INTERRUPTED)
)
_HOUSEKEEPING = 3600.0  # seconds
_CLAIM_RETRY = 1.0
_FLUSH_LIMIT = 5.0
_CANCEL_AGAIN = 3.0  # longer than closing a connection may take
_DECIDERS = 4


class Rules(Protocol):
    """Decides what is next for an entry."""

    waits_since: ClassVar[str]

    def overtaking(self, entry: JobRecord, others: Iterable[JobRecord]) -> list[JobRecord]:
        """Return the overdue jobs that would run before another one, though due after it."""

    def next(self, entry: JobRecord, now: float, *, claimed: bool, paused: bool) -> Next:
        """Return the next step and its time."""


class Agent:
    """One agent of a workstation. `run` runs it until `stop`."""

    kind: ClassVar[AgentKind]

    def __init__(self, settings: AgentSettings, rules: Rules, user: str = "") -> None:
        """Open the agent's folder.

        Raises:
            StateError: the state directory cannot be used, or the agent runs already.
            WrongSetting: the folder of trusted keys cannot be used.
        """
        trust = Trust.by(settings)
        self._settings = settings
        self._rules = rules
        self.identity = Identity(self.kind, settings.workstation, user)
        state_dir = shared_directory(settings.state_dir)
        check(state_dir, service=self.kind is AgentKind.SERVICE)
        self.directory = private_directory(state_dir / self.identity.name)
        self._lock = lock(self.directory)
        self._sealing = Sealing(self.directory, login(self.kind, settings.workstation, user))
        self._ledger = Ledger(self.directory / "ledger.db")
        self._claims = Claims(settings.state_dir, self.identity.name)
        self._outbox = Outbox(self.identity, self._ledger)
        self.changes = Changes()
        self.entries = OpenJobs(self._ledger, self._claims, self.changes, self._stored, self.ended)
        self._runs = Executor(
            settings, self.identity, self.entries, self.directory / "runs", self._sealing
        )
        self._withdrawal = Cancellations(self.entries, self._runs)
        self._presence = Heartbeat(
            settings, self.identity, self.entries, self._runs, self._sealing.public
        )
        recovery = Recovery(self.identity, settings, self._ledger, trust, self._admit)
        self._intake = Inbox(
            self.identity,
            settings,
            self._ledger,
            self._claims,
            recovery,
            trust,
            accepted=self._accept,
            cancelled=self._withdrawal.cancel,
            paused=self._pause,
            stored=self._outbox.wake,
        )
        self._uplink = BrokerSession(
            settings,
            self.identity,
            self._ledger,
            self.changes,
            self._intake,
            self._outbox,
            self._presence,
            recovery,
        )
        self._ready: asyncio.PriorityQueue[tuple[tuple[float, float, str], str]] = (
            asyncio.PriorityQueue()
        )
        self._deciders = Threads(_DECIDERS, "decide")
        self._blocked: dict[str, float] = {}  # until when, by the monotonic clock
        self._standby = Takeover(settings, self._claims)
        self._tasks = asyncio.TaskGroup()
        self._begun: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._at_once = False
        self._away = 0.0

    def stop(self) -> None:
        """Stop: let running commands finish within the drain time; called again, at once."""
        self._at_once = self._stopping.is_set()
        self._stopping.set()
        if self._at_once:
            self._runs.kill()

    async def run(self) -> None:
        """Work until stopped."""
        try:
            async with self._tasks as tasks:
                self._recover()
                uplink = tasks.create_task(self._uplink.run())
                others = [
                    tasks.create_task(work)
                    for work in (self._schedule(), self._serve(), self._keep_house())
                ]
                workers = [
                    tasks.create_task(self._work()) for _ in range(self._settings.concurrency)
                ]
                paused = self._presence.paused or None
                _log.info("agent.started", groups=facts.groups(self._settings), paused=paused)
                await self._stopping.wait()
                _log.info("agent.stopping", running=self._runs.count)
                self._uplink.stop_intake()
                for task in others:
                    task.cancel()
                await self._drain()
                for task in [*workers, *self._begun]:
                    task.cancel()
                await self._end(uplink)
        finally:
            self._runs.close()
            self._deciders.close()
            self._ledger.close()
            self._claims.close()
            _log.info("agent.stopped")

    @staticmethod
    async def _end(uplink: asyncio.Task[None]) -> None:
        """Cancel until it has ended: the AMQP library may swallow it, as wait_for of 3.11 does."""
        while not uplink.done():
            uplink.cancel()
            await asyncio.wait({uplink}, timeout=_CANCEL_AGAIN)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that ends by itself, or with the agent."""
        task = self._tasks.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _serve(self) -> None:
        """Answer those who speak to this agent on its workstation."""

    async def _drain(self) -> None:
        """Let what runs end, end what does not, and send what is to be reported."""
        await self._runs.drain(self._patience())
        with suppress(TimeoutError):
            async with timeout(_FLUSH_LIMIT):
                await self._ledger.commit(lambda _: None)  # all before it is on the disk
                if not self._at_once:
                    await self._outbox.drained()
                    await self._presence.leave()
                return
        _log.warning("outbox.waits", reason="reports are sent at the next start")

    def _patience(self) -> float:
        """Return for how many seconds running commands may go on when the agent stops."""
        return self._settings.drain.total_seconds()

    def _recover(self) -> None:
        """Take up the ledger where a former run of this agent left it."""
        life, found = self._ledger.load()
        self._presence.restore(life.pause)
        still_open = {entry.job.id for entry in found}
        self._runs.tidy(still_open)
        if life.damage:
            return  # nothing of it is trusted before the broker's record was asked
        self._claims.conclude_all(still_open)
        self._away = time.time() - life.seen_at
        for entry in found:
            self._admit(entry)

    def _admit(self, entry: JobRecord) -> None:
        """Take in an entry of the ledger, whatever had become of it."""
        job = entry.job
        self.entries.add(entry)
        self._hold_back(entry)
        if entry.state is State.STARTED:
            self.entries.occupy(job.id)
            self._begin(self._take_up(entry))
        elif job.context is Context.FOREGROUND and self._away > self._keep:
            self.entries.occupy(job.id)
            text = "its agent was away for longer than decisions are kept"
            closing = Next(Step.CLOSE, 0, State.EXPIRED, text)
            self._begin(self._close(entry, closing))
        self._withdrawal.supersede(entry)

    async def _take_up(self, entry: JobRecord) -> None:
        """Go on with a job whose command was started when a former run of this agent ended."""
        job_id = entry.job.id
        try:
            while entry.job.context is Context.FOREGROUND and not self._claims.resume(job_id):
                decision = self._claims.decision(job_id)
                if decision is None or decision.agent == UNKNOWN:
                    break  # somebody removed or damaged it: what we know counts
                if decision.agent != self.identity.name:
                    self.entries.change(entry, open=False)
                    return
                if not decision.running:
                    break
                await asyncio.sleep(_CLAIM_RETRY / 10)  # somebody only looks whether we live
            await self._runs.take_up(entry)
        finally:
            self.entries.vacate(job_id)

    @property
    def _keep(self) -> float:
        return self._settings.keep.total_seconds()

    async def _keep_house(self) -> None:
        """Forget what ended long ago, so that nothing grows for ever."""
        while True:
            now = time.time()
            windows = str(self._settings.windows)
            await self._ledger.commit(partial(Transaction.seen, now=now, windows=windows))
            began = time.monotonic()
            while await self._ledger.commit(partial(Transaction.forget, before=now - self._keep)):
                await asyncio.sleep(time.monotonic() - began)  # half of the time is for others
                began = time.monotonic()
            await self._deciders.call(partial(self._claims.forget, now - self._keep))
            for job_id in self._blocked.keys() | self._standby.known():
                if self.entries.get(job_id) is None:
                    self._blocked.pop(job_id, None)
                    self._standby.forget(job_id)
            await asyncio.sleep(min(_HOUSEKEEPING, self._keep / 4))

    def _stored(self) -> None:
        """Have a report sent; at once where no command runs, of which more would follow."""
        self._outbox.wake(now=not self._runs.count)

    # What is next

    def _accept(self, entry: JobRecord) -> None:
        _log.info("job.received", job=entry.job.id, name=entry.job.title)
        self._admit(entry)

    def _pause(self, pause: Pause) -> None:
        """Start nothing more, or go on with what is due meanwhile."""
        event = "agent.paused" if pause.paused else "agent.resumed"
        _log.info(event, by=pause.sender, reason=pause.reason or None)
        self._presence.pause(pause)
        self.changes.tell()
        if not pause.paused:
            self.entries.wake_all()

    async def _schedule(self) -> None:
        """Take each entry's next step when its time comes."""
        while True:
            entry = await self.entries.due()
            if self._intake.caught_up.is_set():
                self._advance(entry, time.time())
            else:
                await self._intake.caught_up.wait()
                self.entries.wake(entry.job.id)

    def _next(self, entry: JobRecord) -> Next:
        claimed, paused = self._claims.holds(entry.job.id), self._presence.paused
        now = time.time()
        following = self._rules.next(entry, now, claimed=claimed, paused=paused)
        # Not before it is due: what this agent cannot open, another one here may.
        due = following.step is not Step.CLOSE and following.at <= now
        if due and (reason := self._sealing.objection(entry.job.command)):
            return Next(Step.CLOSE, 0, State.REFUSED, reason)
        return following

    def _advance(self, entry: JobRecord, now: float) -> None:
        following = self._next(entry)
        job_id = entry.job.id
        blocked = self._blocked.get(job_id, 0.0) - time.monotonic()
        at = max(following.at, now + blocked) if blocked > 0 else following.at
        if at > now:
            self._wait(entry, now, at)
        elif following.step is Step.OFFER:
            self._offer(entry, now)
        elif following.step is Step.ACCEPT:
            self.accept(entry, "the user accepts all offers")
        elif following.step is Step.COUNT_DOWN:
            if self._claims.take(job_id):
                self.entries.wake(job_id)
                self.changes.tell()
            else:
                self._not_ours(entry)
        elif following.step is Step.RUN:
            self.entries.occupy(job_id)
            self._ready.put_nowait((order(entry), job_id))
        else:
            self.entries.occupy(job_id)
            self._begin(self._close(entry, following))

    def _wait(self, entry: JobRecord, now: float, at: float) -> None:
        """Look at an entry again at its time; a user's job now and then, if others ended it."""
        if entry.job.context is Context.FOREGROUND:
            at = min(at, now + max(1.0, self._settings.missing_after.total_seconds()))
            decision = self._claims.decision(entry.job.id)
            if decision and decision.agent != self.identity.name:
                self._not_ours(entry)
                return
        if at < NEVER:
            self.entries.wake(entry.job.id, at)

    def _offer(self, entry: JobRecord, now: float) -> None:
        if self._claims.decision(entry.job.id):
            self._not_ours(entry)
            return
        shown_at = entry.shown_at
        self.entries.change(
            entry,
            self.identity.report(entry.job.id, State.OFFERED),
            # In the future: the clock was set back since; the user gets a whole countdown.
            shown_at=now if shown_at is None or shown_at > now else shown_at,
            until=None,
        )
        self._hold_back(self.entries.get(entry.job.id) or entry)
        self.offered(entry)

    def _hold_back(self, entry: JobRecord) -> None:
        """Have no overdue job run before this one, if it is due after it."""
        since = self._rules.waits_since
        for other in self._rules.overtaking(entry, self.entries.all()):
            self.entries.change(other, **{since: getattr(entry, since)})

    def offered(self, entry: JobRecord) -> None:
        """Tell the user of an offer; an agent without a window says it in its log."""
        mandatory = entry.job.mandatory_at
        _log.info(
            "job.offered",
            job=entry.job.id,
            name=entry.job.title,
            mandatory_at=str(mandatory) if mandatory else None,
        )

    def ended(self, entry: JobRecord) -> None:
        """Tell the user that a job ended; an agent without a window has said it in its log."""

    def accept(self, entry: JobRecord, reason: str = "") -> None:
        """The user wants the job run now."""
        self.entries.change(entry, self.identity.report(entry.job.id, State.ACCEPTED, reason))

    def _not_ours(self, entry: JobRecord) -> None:
        """Another agent holds the claim, or it is decided: wait, or leave the job to it."""
        decision = self._claims.decision(entry.job.id)
        if decision is None:
            self._look_again(entry, _CLAIM_RETRY)
        elif decision.agent == self.identity.name or self._inherits(decision.agent):
            # We decided, and ended before our ledger knew.
            state = State(decision.state) if decision.state in _NOT_STARTED else State.INTERRUPTED
            reason = "the agent ended while it decided"
            if decision.agent == UNKNOWN:
                reason = "its claim cannot be read: whether another agent started it is not known"
            self._finish(entry, Outcome(state, None, reason))
        elif decision.running and self.kind is AgentKind.SERVICE:
            self._stand_by(entry, decision)
        else:
            self.entries.change(entry, open=False)

    def _look_again(self, entry: JobRecord, after: float) -> None:
        self._blocked[entry.job.id] = time.monotonic() + after
        self.entries.wake(entry.job.id, time.time() + after)

    def _inherits(self, agent: str) -> bool:
        """Whether this agent speaks for a claim whose holder cannot be read."""
        return agent == UNKNOWN and self.kind is AgentKind.SERVICE

    def _stand_by(self, entry: JobRecord, decision: ClaimRecord) -> None:
        """Speak for a user's agent that ended in the middle of a job, or does not end."""
        if reason := self._standby.conclude(entry, decision):
            self._finish(entry, Outcome(State.INTERRUPTED, None, reason))
        else:
            self._look_again(entry, self._standby.pause)

    async def _close(self, entry: JobRecord, following: Next) -> None:
        """End a job that is not started, or not again, if it is ours to say so."""
        state, reason = following.state or State.REFUSED, following.reason
        if entry.starts:
            state, reason = State.INTERRUPTED, f"the agent ended while it ran; then: {reason}"
        try:
            if await self._decided(entry, state):
                self._finish(entry, Outcome(state, None, reason))
            else:
                self._not_ours(entry)
        finally:
            self.entries.vacate(entry.job.id)

    async def _decided(self, entry: JobRecord, state: State) -> bool:
        """Decide what becomes of a job; a background job is the service's without a claim."""
        if entry.job.context is Context.BACKGROUND:
            return True
        job_id = entry.job.id
        if await self._deciders.call(lambda: self._claims.decide(job_id, state)):
            return True
        if self.kind is not AgentKind.SERVICE:
            return False
        return await self._deciders.call(lambda: self._standby.overrule(job_id, state))

    async def _work(self) -> None:
        """Run what is due, one after the other."""
        while True:
            _, job_id = await self._ready.get()
            try:
                if entry := self.entries.get(job_id):
                    following = self._next(entry)
                    due = following.step is Step.RUN and following.at <= time.time()
                    if due and not self._stopping.is_set():
                        await self._run(entry)
            finally:
                self.entries.vacate(job_id)

    async def _run(self, entry: JobRecord) -> None:
        with self._runs.begun(entry) as run:
            if entry.starts or await self._decided(entry, State.STARTED):
                await self._runs.complete(entry.job.id, run)
            else:
                self._not_ours(entry)

    def _finish(self, entry: JobRecord, ended: Outcome) -> None:
        final = self.identity.report(entry.job.id, ended.state, ended.reason, result=ended.result)
        self.entries.finish(entry, ended, final)
