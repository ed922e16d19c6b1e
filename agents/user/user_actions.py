"""What a user may decide of the jobs that they are offered, and of those that run."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from agents.claims.claims import Claims
from agents.identity import Identity
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.jobs.scheduler import Scheduler
from agents.store.transaction import JobRecord
from agents.user.control import Declined, read_reason, text_of
from agents.user.reminders import Reminders
from schemas import Requirement, State
from schemas.policy import InteractiveRules
from schemas.times import check_years, duration_text

_LONGEST = 366 * 86400.0  # seconds
_ON_THE_WAY = 5.0  # seconds: a time that was right when the user chose it still is


class UserActions:
    """Does what a user of the interactive agent wants, or says why not."""

    def __init__(
        self,
        identity: Identity,
        rules: InteractiveRules,
        entries: OpenJobs,
        claims: Claims,
        executor: Executor,
        scheduler: Scheduler,
        pause: PauseState,
        reminders: Reminders,
    ) -> None:
        self._identity = identity
        self._rules = rules
        self._entries = entries
        self._claims = claims
        self._executor = executor
        self._scheduler = scheduler
        self._pause = pause
        self._reminders = reminders

    def make(self, request: dict[str, Any]) -> str:
        """Do what is asked; return what to tell the user.

        Raises:
            Declined: it cannot be done.
        """
        job_id = text_of(request, "job")
        match text_of(request, "do"):
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
                raise Declined(f"{other!r} is nothing that this agent can do")

    def run_now(self, entry: JobRecord) -> str:
        """The user wants the job run now; return what to tell them."""
        self._scheduler.accept(entry)
        return f"{entry.job.title}: {self._start(entry)}"

    def _start(self, entry: JobRecord) -> str:
        """Say when an accepted job starts."""
        if self._pause.paused:
            return "is accepted; this workstation is paused, and it runs when that ends"
        now = time.time()
        start = self._rules.host.start(entry.job, now, now)
        if start <= now:
            return "runs now"
        if start >= entry.expires_at:
            return "is accepted, but expires before the next maintenance window"
        return f"is accepted; it runs in the maintenance window of {_on_the_clock(start)}"

    def postpone(self, entry: JobRecord, until: float) -> str:
        """The user wants to be asked again later.

        Raises:
            Declined: that would be after its mandatory time or its expiry, too soon, or once more
                than the job allows.
        """
        now, limit = time.time(), self._limit(entry)
        if until <= now:
            raise Declined("--until: is in the past")
        self._check_limit("--until", entry, until)
        most = entry.job.max_postponements
        if entry.postponements_left == 0:
            raise Declined(
                f"{entry.job.title}: may be postponed {_times(most)}, and was"
                if most
                else f"{entry.job.title}: may not be postponed"
            )
        # Up to its mandatory time or expiry it may be shorter: there is no more to choose from.
        least = min(now + entry.job.min_interval.total_seconds(), limit)
        if until < least - _ON_THE_WAY:
            interval = duration_text(entry.job.min_interval)
            text = f"a postponement lasts {interval} at least, until {_on_the_clock(least)}"
            raise Declined(f"--until: {text}")
        end = datetime.fromtimestamp(min(max(until, least), limit), UTC)
        self._entries.change(
            entry,
            self._identity.report(entry.job.id, State.POSTPONED, until=end),
            until=end.timestamp(),
            postponements=entry.postponements + 1,
        )
        return f"{entry.job.title}: postponed until {_on_the_clock(end.timestamp())}"

    def remind(self, entry: JobRecord, after: object) -> str:
        """The user wants the offer shown again in so many seconds; nothing is decided.

        Raises:
            Declined: it would be too late then, or the job is not an offer now.
        """
        if not isinstance(after, (int, float)) or not 0 < after < _LONGEST:
            raise Declined("after: must be a number of seconds above 0, and at most a year")
        if entry.state is not State.OFFERED:
            raise Declined(f"{entry.job.title}: is {entry.state}; it is not shown again by itself")
        at = time.time() + after
        self._check_limit("after", entry, at)
        self._reminders.ask(entry, at)
        return f"{entry.job.title}: is shown again at {_on_the_clock(at)}"

    def _limit(self, entry: JobRecord) -> float:
        return min(self._rules.deadline(entry, time.time()), entry.expires_at)

    def _check_limit(self, option: str, entry: JobRecord, at: float) -> None:
        limit = self._limit(entry)
        if at > limit + _ON_THE_WAY / 1000:
            kind = "runs" if limit < entry.expires_at else "expires"
            raise Declined(f"{option}: the job {kind} at {_on_the_clock(limit)}")

    def decline(self, entry: JobRecord, reason: str) -> str:
        """The user does not want the job; they may still run it until it expires.

        Raises:
            Declined: it is mandatory.
        """
        if entry.job.requirement is Requirement.MANDATORY:
            raise Declined(f"{entry.job.title}: is mandatory; it can be postponed, not declined")
        report = self._identity.report(entry.job.id, State.DECLINED, reason)
        self._entries.change(entry, report, until=None)
        return f"{entry.job.title}: declined"

    def stop(self, job_id: str) -> str:
        """The user wants a running command ended.

        Raises:
            Declined: it does not run, or its job does not let them.
        """
        running = [entry for entry in self._entries.all() if self._executor.has(entry.job.id)]
        entry = _only(job_id, running, "runs")
        if not entry.job.command.user_may_stop:
            raise Declined(f"{entry.job.title}: may not be stopped by its user")
        self._executor.cancel(entry.job.id, f"stopped by the user ({self._identity.user})")
        return f"{entry.job.title}: is being stopped"

    def _offered(self, job_id: str) -> JobRecord:
        """Return the offered job of an id, or of the only id that begins so."""
        shown = [entry for entry in self._entries.all() if entry.shown_at is not None]
        entry = _only(job_id, shown, "is offered")
        if self._executor.has(entry.job.id) or entry.state is State.STARTED:
            raise Declined(f"{entry.job.title}: runs already")
        if entry.state is State.ACCEPTED:
            raise Declined(f"{entry.job.title}: {self._start(entry)}")
        if self._claims.decision(entry.job.id):
            raise Declined(f"{entry.job.title}: another agent of this workstation has it")
        return entry


def _only(job_id: str, entries: Iterable[JobRecord], what: str) -> JobRecord:
    """Return the entry of an id, or of the only id that begins so."""
    if not job_id:
        raise Declined("JOB: give its id, or how it begins")
    wanted = job_id.lower()
    found = [entry for entry in entries if entry.job.id.startswith(wanted)]
    exact = [entry for entry in found if entry.job.id == wanted]
    if len(exact or found) != 1:
        why = "more than one job begins so" if found else f"no such job {what}"
        raise Declined(f"{job_id}: {why}")
    return (exact or found)[0]


def _moment(request: dict[str, Any], name: str) -> float:
    try:
        moment = datetime.fromisoformat(text_of(request, name))
    except ValueError as error:
        raise Declined(f"--{name}: is no time such as 2026-11-30T09:00+00:00") from error
    if moment.tzinfo is None:
        raise Declined(f"--{name}: must have a zone, such as 2026-11-30T09:00+00:00")
    try:
        check_years(moment)
    except ValueError as error:
        raise Declined(f"--{name}: {error}") from error
    return moment.timestamp()


def _times(count: int | None) -> str:
    return "once" if count == 1 else f"{count} times"


def _on_the_clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%c}"
