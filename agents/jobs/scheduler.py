"""Takes each open job's next step when it is due."""

import asyncio
import time
from typing import TYPE_CHECKING

from agents.changes import Changes
from agents.content.contents import RETRY, Contents
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.jobs.clock import ClockChanges
from agents.jobs.job_claims import JobClaims
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from agents.tasks import BackgroundTasks
from broker.log import get_logger
from schemas import Context, State
from schemas.policy import AFTER_SLEEP, Next, Rules, Step, order
from schemas.times import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger()
_LOOK_EVERY = 1.0  # seconds between two looks at other sessions during a countdown


class Scheduler:
    """Offers jobs, starts countdowns, puts due jobs into `ready`, and closes jobs."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        rules: Rules,
        open_jobs: OpenJobs,
        claims: JobClaims,
        pause: PauseState,
        sealing: Sealing,
        contents: Contents,
        changes: Changes,
        tasks: BackgroundTasks,
        caught_up: asyncio.Event,
    ) -> None:
        """Create a scheduler.

        Args:
            settings: the agent's settings.
            identity: the agent that the reports name.
            rules: the policy that gives a job's next step.
            open_jobs: the jobs to schedule.
            claims: which agent starts or ends a job.
            pause: whether the agent starts jobs.
            sealing: checks that secret variables can be opened.
            contents: the packages that jobs need.
            changes: notified of changes that windows show.
            tasks: the background tasks that close jobs.
            caught_up: cleared until the messages queued before the connection are received.
        """
        self._settings = settings
        self._identity = identity
        self._rules = rules
        self._open_jobs = open_jobs
        self._claims = claims
        self._pause = pause
        self._sealing = sealing
        self._contents = contents
        self._waits: dict[str, str] = {}  # for what a due job waits, as logged
        self._changes = changes
        self._tasks = tasks
        self._caught_up = caught_up
        self.ready: asyncio.PriorityQueue[tuple[tuple[float, float, str], str]] = (
            asyncio.PriorityQueue()
        )
        """Ids of the jobs to start now, in the order of their times."""
        self.on_offered: list[Callable[[JobRecord], None]] = []
        """Callbacks for each job that is offered to the user."""
        self.on_waiting: list[Callable[[JobRecord], None]] = []
        """Callbacks for each due job whose packages are not there; again every few seconds."""
        open_jobs.on_clock_changed.append(self._clock_changed)
        open_jobs.on_closed.append(self._forget)

    async def run(self) -> None:
        """Take steps until cancelled."""
        while True:
            record = await self._open_jobs.due()
            if self._caught_up.is_set():
                self._advance(record, time.time())
            else:
                await self._caught_up.wait()
                self._open_jobs.wake(record.job.id)

    def _forget(self, record: JobRecord) -> None:
        self._waits.pop(record.job.id, None)

    def is_due(self, record: JobRecord) -> bool:
        """Whether the job is to start now."""
        following = self._next(record)
        return following.step is Step.RUN and following.at <= time.time()

    def accept(self, record: JobRecord, reason: str = "") -> None:
        """Accept a job for its user; it is due immediately."""
        report = self._identity.report(record.job.id, State.ACCEPTED, reason)
        self._open_jobs.change(record, report)

    def hold_back_later_jobs(self, record: JobRecord) -> None:
        """Delay overdue jobs that would otherwise run before this one."""
        since = self._rules.waits_since
        for other in self._rules.overtaking(record, self._open_jobs.all()):
            self._open_jobs.change(other, **{since: getattr(record, since)})

    async def close(self, record: JobRecord, following: Next) -> None:
        """End a job without starting it (again), unless another agent has claimed it."""
        state, reason = following.state or State.REFUSED, following.reason
        if state is State.EXPIRED and (waits := self._contents.waits(record.job)):
            reason = f"{reason}; {waits}"
        if record.starts:
            state, reason = State.INTERRUPTED, f"the agent ended while it ran; then: {reason}"
        try:
            if await self._claims.decide(record, state):
                self._open_jobs.end(record, state, reason)
            else:
                self._claims.yield_to_holder(record)
        finally:
            self._open_jobs.release(record.job.id)

    def _clock_changed(self, changes: ClockChanges) -> None:
        """After sleep, begin countdowns and the service's grace anew: no time asleep counts."""
        if not changes.slept:
            return
        now = time.time()
        for record in self._open_jobs.all():
            if not self._rules.restarts_wait(record, now):
                continue
            if self._rules.waits_since == "shown_at":
                self._offer(record, now, AFTER_SLEEP)
            else:
                self._open_jobs.change(record, received_at=now)

    def _next(self, record: JobRecord) -> Next:
        claimed, now = self._claims.holds(record.job.id), time.time()
        following = self._rules.next(record, now, claimed=claimed, paused=self._pause.paused)
        # Only when due: another agent of the workstation may be able to open the variables.
        due = following.step is not Step.CLOSE and following.at <= now
        if due and (reason := self._sealing.objection(record.job.command)):
            return Next(Step.CLOSE, 0, State.REFUSED, reason)
        return following

    def _advance(self, record: JobRecord, now: float) -> None:
        following = self._next(record)
        job_id = record.job.id
        wait = self._claims.wait(job_id)
        at = max(following.at, now + wait) if wait > 0 else following.at
        if at > now:
            self._wait(record, now, at)
        elif following.step is Step.OFFER:
            self._offer(record, now)
        elif following.step is Step.ACCEPT:
            self.accept(record, "the user accepts all offers")
        elif following.step is Step.COUNT_DOWN:
            if self._claims.take(job_id):
                self._open_jobs.wake(job_id)
                self._changes.notify()
            else:
                self._claims.yield_to_holder(record)
        elif following.step is Step.RUN and (waits := self._contents.waits(record.job)):
            self._wait_for_content(record, now, waits)
        elif following.step is Step.RUN:
            self._waits.pop(job_id, None)
            self._open_jobs.mark_busy(job_id)
            self.ready.put_nowait((order(record), job_id))
        else:
            self._open_jobs.mark_busy(job_id)
            self._tasks.start(self.close(record, following))

    def _wait_for_content(self, record: JobRecord, now: float, waits: str) -> None:
        """Keep a due job until its packages are there; its user's agent keeps the claim."""
        job_id = record.job.id
        if self._waits.get(job_id) != waits:
            if job_id not in self._waits:
                _log.info("job.waits", job=job_id, reason=waits)
            self._waits[job_id] = waits
            self._changes.notify()
        for callback in self.on_waiting:
            callback(record)
        is_interactive = self._rules.waits_since == "shown_at"
        if is_interactive and not self._claims.holds(job_id) and not self._claims.take(job_id):
            self._claims.yield_to_holder(record)
            return
        self._wait(record, now, now + RETRY)

    def _wait(self, record: JobRecord, now: float, at: float) -> None:
        """Schedule the next check of a job; foreground jobs earlier, other agents may end them."""
        if self._claims.give_way(record):
            return
        if self._claims.holds(record.job.id):
            at = min(at, now + _LOOK_EVERY)  # its user, or another, may decide
        if record.job.context is Context.FOREGROUND:
            at = min(at, now + max(1.0, self._settings.missing_after.total_seconds()))
            if self._claims.is_decided_elsewhere(record):
                self._claims.yield_to_holder(record)
                return
        if at < NEVER:
            self._open_jobs.wake(record.job.id, at)

    def _offer(self, record: JobRecord, now: float, reason: str = "") -> None:
        """Show a job to the user; `reason`: why its countdown begins anew, if it does."""
        if self._claims.is_decided(record):
            self._claims.yield_to_holder(record)
            return
        shown_at = record.shown_at
        self._open_jobs.change(
            record,
            # The countdown starts at this time: `pcm why` computes its end from the report.
            self._identity.report(record.job.id, State.OFFERED, reason, at=now),
            # In the future if the clock was set back; then the user gets a whole countdown.
            shown_at=now if reason or shown_at is None or shown_at > now else shown_at,
            until=None,
        )
        self.hold_back_later_jobs(self._open_jobs.get(record.job.id) or record)
        mandatory = record.job.mandatory_at
        _log.info(
            "job.offered",
            job=record.job.id,
            name=record.job.title,
            mandatory_at=str(mandatory) if mandatory else None,
        )
        for callback in self.on_offered:
            callback(record)
