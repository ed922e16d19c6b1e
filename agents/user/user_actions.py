"""The actions of a user on offered and running jobs."""

import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from agents.claims.claims import Claims
from agents.identity import Identity
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.jobs.scheduler import Scheduler
from agents.store.transaction import JobRecord
from agents.user.control import RequestRejected, read_reason, text_field
from agents.user.reminders import Reminders
from schemas import Requirement, State
from schemas.policy import InteractiveRules
from schemas.times import NEVER, check_years, duration_text

_LONGEST = 366 * 86400.0  # seconds
_TOLERANCE = 5.0  # seconds by which a chosen time can have become too early in transit


class UserActions:
    """Carries out the actions of an interactive agent's user."""

    def __init__(
        self,
        identity: Identity,
        rules: InteractiveRules,
        open_jobs: OpenJobs,
        claims: Claims,
        executor: Executor,
        scheduler: Scheduler,
        pause: PauseState,
        reminders: Reminders,
    ) -> None:
        self._identity = identity
        self._rules = rules
        self._open_jobs = open_jobs
        self._claims = claims
        self._executor = executor
        self._scheduler = scheduler
        self._pause = pause
        self._reminders = reminders

    def make(self, request: dict[str, Any]) -> str:
        """Carry out a request; return the message for the user.

        Raises:
            RequestRejected: the action is not possible.
        """
        job_id = text_field(request, "job")
        match text_field(request, "do"):
            case "run":
                return self.run_now(self._offered(job_id))
            case "postpone":
                return self.postpone(self._offered(job_id), _moment(request, "until"))
            case "remind":
                return self.remind(self._offered(job_id), request.get("after"))
            case "decline":
                return self.decline(self._offered(job_id), read_reason(request.get("reason", "")))
            case "stop":
                return self.stop(job_id)
            case other:
                raise RequestRejected(f"unknown action: {other!r}")

    def run_now(self, entry: JobRecord) -> str:
        """Accept an offered job; return the message for the user."""
        self._scheduler.accept(entry)
        return f"{entry.job.title}: {self._start(entry)}"

    def _start(self, entry: JobRecord) -> str:
        """Return a message that says when an accepted job starts."""
        if self._pause.paused:
            return "is accepted; it runs when this workstation is no longer paused"
        now = time.time()
        start = self._rules.start(replace(entry, state=State.ACCEPTED), now)
        if start <= now:
            return "runs now"
        if start == NEVER:
            return "is accepted, but expires before the next maintenance window"
        return f"is accepted; it runs in the maintenance window of {_local_time(start)}"

    def postpone(self, entry: JobRecord, until: float) -> str:
        """Postpone an offered job.

        Raises:
            RequestRejected: the time is after the mandatory time or the expiry, or too early; or
                the job cannot be postponed again.
        """
        now, limit = time.time(), self._limit(entry)
        if until <= now:
            raise RequestRejected("--until: is in the past")
        self._check_limit("--until", entry, until)
        most = entry.job.max_postponements
        if entry.postponements_left == 0:
            raise RequestRejected(
                f"{entry.job.title}: can be postponed {_times(most)} only"
                if most
                else f"{entry.job.title}: cannot be postponed"
            )
        # A postponement up to the mandatory time or the expiry can be shorter than the interval.
        least = min(now + entry.job.min_interval.total_seconds(), limit)
        if until < least - _TOLERANCE:
            interval = duration_text(entry.job.min_interval)
            text = f"a postponement lasts at least {interval}, until {_local_time(least)}"
            raise RequestRejected(f"--until: {text}")
        end = datetime.fromtimestamp(min(max(until, least), limit), UTC)
        self._open_jobs.change(
            entry,
            self._identity.report(entry.job.id, State.POSTPONED, until=end),
            until=end.timestamp(),
            postponements=entry.postponements + 1,
        )
        return f"{entry.job.title}: postponed until {_local_time(end.timestamp())}"

    def remind(self, entry: JobRecord, after: object) -> str:
        """Show the offer again after a number of seconds; the job's state does not change.

        Raises:
            RequestRejected: the time is after the mandatory time or the expiry; or the job is not
                in state offered.
        """
        if not isinstance(after, (int, float)) or not 0 < after < _LONGEST:
            raise RequestRejected("after: must be a number of seconds above 0, and at most a year")
        if entry.state is not State.OFFERED:
            raise RequestRejected(
                f"{entry.job.title}: is {entry.state}; there is no reminder of it"
            )
        at = time.time() + after
        self._check_limit("after", entry, at)
        self._reminders.ask(entry, at)
        return f"{entry.job.title}: is shown again at {_local_time(at)}"

    def _limit(self, entry: JobRecord) -> float:
        return min(self._rules.deadline(entry, time.time()), entry.expires_at)

    def _check_limit(self, option: str, entry: JobRecord, at: float) -> None:
        limit = self._limit(entry)
        if at > limit + _TOLERANCE / 1000:
            kind = "runs" if limit < entry.expires_at else "expires"
            raise RequestRejected(f"{option}: the job {kind} at {_local_time(limit)}")

    def decline(self, entry: JobRecord, reason: str) -> str:
        """Decline an optional job; the user can still run it until it expires.

        Raises:
            RequestRejected: it is mandatory.
        """
        if entry.job.requirement is Requirement.MANDATORY:
            raise RequestRejected(
                f"{entry.job.title}: is mandatory; it can be postponed, not declined"
            )
        report = self._identity.report(entry.job.id, State.DECLINED, reason)
        self._open_jobs.change(entry, report, until=None)
        return f"{entry.job.title}: declined"

    def stop(self, job_id: str) -> str:
        """End a running command.

        Raises:
            RequestRejected: it does not run, or its job does not allow that.
        """
        running = [entry for entry in self._open_jobs.all() if self._executor.has(entry.job.id)]
        entry = _find(job_id, running, "runs")
        if not entry.job.command.user_may_stop:
            raise RequestRejected(f"{entry.job.title}: its user is not allowed to stop it")
        self._executor.cancel(entry.job.id, f"stopped by the user ({self._identity.user})")
        return f"{entry.job.title}: is being stopped"

    def _offered(self, job_id: str) -> JobRecord:
        """Return the offered job with an id or a unique prefix of it."""
        shown = [entry for entry in self._open_jobs.all() if entry.shown_at is not None]
        entry = _find(job_id, shown, "is offered")
        if self._executor.has(entry.job.id) or entry.state is State.STARTED:
            raise RequestRejected(f"{entry.job.title}: is already running")
        if entry.state is State.ACCEPTED:
            raise RequestRejected(f"{entry.job.title}: {self._start(entry)}")
        if self._claims.decision(entry.job.id):
            raise RequestRejected(f"{entry.job.title}: another agent of this workstation has it")
        return entry


def _find(job_id: str, entries: Iterable[JobRecord], predicate: str) -> JobRecord:
    """Return the job with an id or a unique prefix of it."""
    if not job_id:
        raise RequestRejected("JOB: must be a job's id or the beginning of one")
    prefix = job_id.lower()
    found = [entry for entry in entries if entry.job.id.startswith(prefix)]
    exact = [entry for entry in found if entry.job.id == prefix]
    if len(exact or found) != 1:
        why = "more than one job's id begins with it" if found else f"no such job {predicate}"
        raise RequestRejected(f"{job_id}: {why}")
    return (exact or found)[0]


def _moment(request: dict[str, Any], name: str) -> float:
    try:
        moment = datetime.fromisoformat(text_field(request, name))
    except ValueError as error:
        raise RequestRejected(f"--{name}: must be a time such as 2026-11-30T09:00+00:00") from error
    if moment.tzinfo is None:
        raise RequestRejected(f"--{name}: must have a time zone, such as 2026-11-30T09:00+00:00")
    try:
        check_years(moment)
    except ValueError as error:
        raise RequestRejected(f"--{name}: {error}") from error
    return moment.timestamp()


def _times(count: int | None) -> str:
    return "once" if count == 1 else f"{count} times"


def _local_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%c}"
