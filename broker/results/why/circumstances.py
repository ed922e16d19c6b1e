"""The facts about a job on a workstation, as of one instant, from which `pcm why` explains it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Literal, NamedTuple

from broker.cli.time_formats import moment
from broker.history.queries.packages import ContentRow
from broker.history.queries.rows import Event, JobRow, OutcomeRow
from broker.history.queries.workstations import AgentRow, WorkstationRow
from schemas import Cancellation, Context, Job, Requirement, State, WallClock
from schemas.times import Moment, at_wall, find_zone

SERVICE = "service"
_USERS = "interactive-"
_CONNECTED = ("up", "paused")

Time = Literal["offer_at", "mandatory_at", "expires_at"]


class CancellationFacts(NamedTuple):
    """When, by whom and why a job was cancelled for a workstation."""

    at: float
    by: str
    reason: str


class Explanation(NamedTuple):
    """Why a job is in its state, what happens next, and when; sentences without full stops."""

    why: str
    next: str
    next_at: float | None = None


@dataclass(frozen=True)
class Circumstances:
    """A job on a workstation, the workstation and its agents. Times are since the epoch.

    Attributes:
        job: the job.
        body: the job as it was sent; None if the history has only its reports.
        workstation: the workstation's name.
        outcome: the job's state on the workstation; None if the job is not for it.
        station: the workstation; None if it never checked in.
        events: the workstation's reports of the job, in order.
        cancellations: the job's cancellations, in order.
        now: the current time.
        due_before: see `JobQueries.due_before`; empty unless it is a user's mandatory job.
        downloads: the content that it needs there, and that is not ready.
    """

    job: JobRow
    body: Job | None
    workstation: str
    outcome: OutcomeRow | None
    station: WorkstationRow | None
    events: Sequence[Event]
    cancellations: Sequence[Cancellation]
    now: float
    due_before: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    downloads: Sequence[ContentRow] = ()

    @property
    def background(self) -> bool:
        """Whether only the service agent runs it."""
        return self.job.context == Context.BACKGROUND

    @property
    def mandatory(self) -> bool:
        """Whether it runs without a user's consent."""
        return self.job.requirement == Requirement.MANDATORY

    @property
    def needs_user(self) -> bool:
        """Whether it needs a user's input."""
        return self.body is not None and self.body.command.user_input_required

    @property
    def service(self) -> AgentRow | None:
        """The service agent's last check-in."""
        return self.agent(SERVICE)

    @property
    def users(self) -> list[AgentRow]:
        """The agents of users who are logged on."""
        agents = self.station.agents if self.station else ()
        return [
            row for row in agents if row.agent != SERVICE and row.status(self.now) in _CONNECTED
        ]

    @property
    def cancellation(self) -> CancellationFacts | None:
        """The first cancellation that includes the workstation."""
        for record in self.cancellations:
            if record.concerns(self.workstation):
                return CancellationFacts(
                    record.created_at.timestamp(), record.sender, record.reason
                )
        job = self.job
        if job.cancelled_at is None:
            return None
        return CancellationFacts(job.cancelled_at, job.cancelled_by, job.cancel_reason)

    @property
    def zone(self) -> tzinfo | None:
        """The workstation's time zone, if an agent reported it."""
        agents = self.station.agents if self.station else ()
        return next((zone for row in agents if (zone := find_zone(row.zone))), None)

    def agent(self, name: str) -> AgentRow | None:
        """Return the last check-in of an agent of the workstation."""
        agents = self.station.agents if self.station else ()
        return next((row for row in agents if row.agent == name), None)

    def status(self, name: str) -> str:
        """Return an agent's status as of its row; `unknown` without a check-in."""
        row = self.agent(name)
        return row.status(self.now) if row else "unknown"

    def is_connected(self, name: str) -> bool:
        """Whether an agent is up or paused."""
        return self.status(name) in _CONNECTED

    def status_text(self, name: str) -> str:
        """Return an agent's status, as the end of a sentence."""
        row, agent = self.agent(name), agent_name(name)
        if row is None:
            return f"{agent} has never checked in"
        match row.status(self.now):
            case "stopped":
                return f"{agent} was stopped at {self.at(row.at)}"
            case "revoked" if row.revoked_at is not None:
                return f"{agent}'s login was revoked at {self.at(row.revoked_at)}"
            case "missing":
                return f"{agent} has been missing since {self.at(row.at)}"
            case "paused" if row.paused_at is not None:
                reason = f": {row.pause_reason}" if row.pause_reason else ""
                since = self.at(row.paused_at)
                return f"{agent} has been paused since {since} by {row.paused_by}{reason}"
            case status:
                return f"{agent} is {status}"

    def at(self, time: float) -> str:
        """Format a time for people."""
        return moment(time, self.now)

    def time(self, name: Time) -> float | None:
        """Return a time of the job; a wall-clock time is converted with the workstation's zone.

        If the zone is not known, it is the time when the last time zone reaches it.
        """
        given = self._given(name)
        if isinstance(given, WallClock) and self.zone is not None:
            return at_wall(given.local, self.zone).timestamp()
        if name == "expires_at" and isinstance(given, datetime):
            return given.timestamp()
        time: float | None = getattr(self.job, name)
        return time

    def _given(self, name: Time) -> Moment | None:
        """Return a time as the job gives it, or the default expiry."""
        if self.body is None:
            return None
        given: Moment | None = getattr(self.body, {"expires_at": "expiry"}.get(name, name))
        return given

    def time_text(self, name: Time) -> str:
        """Format a time of the job for people."""
        given = self._given(name)
        if isinstance(given, WallClock):
            return f"{given.local:%Y-%m-%d %H:%M} on its own clock"
        time = self.time(name)
        return "no time" if time is None else self.at(time)

    def when(self, at: float) -> str:
        """Format a time for people; a time of the job as it was given."""
        names: tuple[Time, ...] = ("mandatory_at", "offer_at")
        return next((self.time_text(name) for name in names if self.time(name) == at), self.at(at))

    def unless_expired(self, at: float | None = None) -> str:
        """Return the condition that a step is taken before the expiry; empty if it surely is.

        `at`: when the step is taken, if that is known.
        """
        expiry = self.time("expires_at")
        if expiry is None or (at is not None and at < expiry):
            return ""
        return f", unless it has expired by then, at {self.time_text('expires_at')}"

    def windows(self, agent: str) -> str:
        """Return the agent's maintenance windows; empty if the job does not respect windows."""
        row = self.agent(agent)
        respects = self.body is not None and self.body.respects_windows
        return row.windows if respects and row is not None else ""

    def in_window(self, agent: str, at: float | None = None) -> str:
        """Return the next maintenance window of an agent, as the end of a sentence.

        `at`: when the job starts in it, if that is known.
        """
        windows = self.windows(agent)
        when = f", at {self.at(at)}" if at is not None else ""
        return f", in its next maintenance window ({windows}){when}" if windows else ""

    def first(self, state: State, agent: str | None = None) -> Event | None:
        """Return the first report of a state, by one agent or any."""
        return next(
            (
                event
                for event in self.events
                if event.state == state and agent in {None, event.agent}
            ),
            None,
        )


def lost_text(c: Circumstances) -> str:
    """Return that a queued job may be lost, as the end of a sentence; empty if nothing says so."""
    new_at = c.service.queue_new_at if c.service else None
    if new_at is None or new_at <= c.job.created_at:
        return ""
    return (
        f"; the service agent's queue was made anew at {c.at(new_at)}, so what was sent before may"
        " be lost"
    )


def agent_name(agent: str) -> str:
    """Return an agent's name for people."""
    return "the service agent" if agent == SERVICE else f"{user_name(agent)}'s agent"


def user_name(agent: str) -> str:
    """Return the user of an interactive agent."""
    return agent.removeprefix(_USERS)


def because(reason: str, joint: str = ": ") -> str:
    """Return a reason as the end of a sentence; empty if there is none."""
    text = " ".join(reason.split()).rstrip(".")
    return joint + text if text else ""
