"""The interactive agent: in a user's session, with the user's rights, for foreground jobs."""

import time
from datetime import UTC, datetime
from typing import Any

from agents import control
from agents.agent import Agent
from agents.control import Declined
from agents.place import here
from agents.schedule import InteractiveRules
from agents.settings import AgentSettings
from agents.tables import Entry
from broker.topology import AgentKind
from schemas import Requirement, State


class InteractiveAgent(Agent):
    """Offers foreground jobs to its user, and runs what the user or the mandatory time says."""

    kind = AgentKind.INTERACTIVE

    def __init__(self, settings: AgentSettings) -> None:
        self._interactive = InteractiveRules(
            here(settings), settings.countdown.total_seconds(), settings.accept_offers
        )
        super().__init__(settings, self._interactive, settings.user)

    async def _serve(self) -> None:
        await control.serve(self.directory, self._answer)

    def _patience(self) -> float:
        return 0.0  # the user logs off: what runs in their name ends

    def _answer(self, request: dict[str, Any]) -> str:
        entry = self._find(str(request["job"]))
        match request["do"]:
            case "run":
                return self.run_now(entry)
            case "postpone":
                return self.postpone(entry, datetime.fromisoformat(request["until"]))
            case "decline":
                return self.decline(entry)
            case other:
                raise Declined(f"{other!r} is nothing that this agent can do")

    def run_now(self, entry: Entry) -> str:
        """The user wants the job run now; return what to tell them."""
        self.accept(entry)
        return f"{entry.job.title}: {self._start(entry)}"

    def _start(self, entry: Entry) -> str:
        """Say when an accepted job starts."""
        if self._presence.paused:
            return "is accepted; this workstation is paused, and it runs when that ends"
        now = time.time()
        start = self._interactive.place.start(entry.job, now, now)
        if start <= now:
            return "runs now"
        if start >= entry.expires_at:
            return "is accepted, but expires before the next maintenance window"
        return f"is accepted; it runs in the maintenance window of {_on_the_clock(start)}"

    def postpone(self, entry: Entry, until: datetime) -> str:
        """The user wants to be asked again later.

        Raises:
            Declined: that would be after its mandatory time, or its expiry.
        """
        limit = min(self._interactive.deadline(entry, time.time()), entry.expires_at)
        if until.timestamp() <= time.time():
            raise Declined("--until: is in the past")
        if until.timestamp() > limit:
            kind = "runs" if limit < entry.expires_at else "expires"
            raise Declined(f"--until: the job {kind} at {_on_the_clock(limit)}")
        report = self.identity.report(entry.job.id, State.POSTPONED, until=until)
        self.entries.change(entry, report, until=until.timestamp())
        return f"{entry.job.title}: postponed until {until.astimezone():%c}"

    def decline(self, entry: Entry) -> str:
        """The user does not want the job; they may still run it until it expires.

        Raises:
            Declined: it is mandatory.
        """
        if entry.job.requirement is Requirement.MANDATORY:
            raise Declined(f"{entry.job.title}: is mandatory; it can be postponed, not declined")
        self.entries.change(entry, self.identity.report(entry.job.id, State.DECLINED), until=None)
        return f"{entry.job.title}: declined"

    def _find(self, job_id: str) -> Entry:
        """Return the offered job of an id, or of the only id that begins so."""
        if not job_id:
            raise Declined("JOB: give its id, or how it begins")
        found = [
            entry
            for entry in self.entries.all()
            if entry.shown_at is not None and entry.job.id.startswith(job_id.lower())
        ]
        exact = [entry for entry in found if entry.job.id == job_id.lower()]
        if len(exact or found) != 1:
            what = "more than one job begins so" if found else "no such job is offered"
            raise Declined(f"{job_id}: {what}")
        entry = (exact or found)[0]
        if self._runs.has(entry.job.id) or entry.state is State.STARTED:
            raise Declined(f"{entry.job.title}: runs already")
        if entry.state is State.ACCEPTED:
            raise Declined(f"{entry.job.title}: {self._start(entry)}")
        if self._claims.decision(entry.job.id):
            raise Declined(f"{entry.job.title}: another agent of this workstation has it")
        return entry


def _on_the_clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%c}"
