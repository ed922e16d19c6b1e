"""All that bears on a job on a workstation, as of one instant."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Literal, NamedTuple

from broker.cli.time_formats import moment
from broker.history.queries import Event, JobRow, Pair
from broker.history.workstations import AgentRow, WorkstationRow
from schemas import Cancellation, Context, Job, Requirement, State, WallClock
from schemas.times import at_wall, find_zone

SERVICE = "service"
_USERS = "interactive-"
_THERE = ("up", "paused")

Time = Literal["offer_at", "mandatory_at", "expires_at"]


class CancellationFacts(NamedTuple):
    """When, by whom and why a job was cancelled for a workstation."""

    at: float
    by: str
    reason: str


class Prospect(NamedTuple):
    """Why it is where it is, what happens next, and when; sentences without their full stop."""

    why: str
    next: str
    next_at: float | None = None


@dataclass(frozen=True)
class Circumstances:
    """What is known of a job on a workstation, and of what is there. Times are since the epoch.

    Attributes:
        job: the job.
        body: the job as it was sent; None where only reports of it are known.
        workstation: the workstation's name.
        pair: what came of the job there; None if it is not for it.
        station: the workstation; None if it never checked in.
        events: its reports of the job, in order.
        cancellations: what was asked of the job, in order.
        now: the instant.
    """

    job: JobRow
    body: Job | None
    workstation: str
    pair: Pair | None
    station: WorkstationRow | None
    events: Sequence[Event]
    cancellations: Sequence[Cancellation]
    now: float

    @property
    def background(self) -> bool:
        """Whether it is the service's alone."""
        return self.job.context == Context.BACKGROUND

    @property
    def mandatory(self) -> bool:
        """Whether it runs, wanted or not."""
        return self.job.requirement == Requirement.MANDATORY

    @property
    def needs_user(self) -> bool:
        """Whether it never runs without a user."""
        return self.body is not None and self.body.command.user_input_required

    @property
    def service(self) -> AgentRow | None:
        """The service agent, as it last checked in."""
        return self.agent(SERVICE)

    @property
    def users(self) -> list[AgentRow]:
        """The agents of users who are logged on."""
        agents = self.station.agents if self.station else ()
        return [row for row in agents if row.agent != SERVICE and row.status(self.now) in _THERE]

    @property
    def withdrawal(self) -> CancellationFacts | None:
        """The first cancellation that is meant for the workstation, too."""
        for asked in self.cancellations:
            if asked.concerns(self.workstation):
                return CancellationFacts(asked.created_at.timestamp(), asked.sender, asked.reason)
        job = self.job
        if job.cancelled_at is None:
            return None
        return CancellationFacts(job.cancelled_at, job.cancelled_by, job.cancel_reason)

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the workstation's clock, if an agent told it."""
        agents = self.station.agents if self.station else ()
        return next((zone for row in agents if (zone := find_zone(row.zone))), None)

    def agent(self, name: str) -> AgentRow | None:
        """Return an agent of the workstation, as it last checked in."""
        agents = self.station.agents if self.station else ()
        return next((row for row in agents if row.agent == name), None)

    def status(self, name: str) -> str:
        """Return whether an agent is `up`, `paused`, `stopped`, `missing` or `unknown`."""
        row = self.agent(name)
        return row.status(self.now) if row else "unknown"

    def is_there(self, name: str) -> bool:
        """Whether an agent is at work."""
        return self.status(name) in _THERE

    def standing(self, name: str) -> str:
        """Return how it stands with an agent, as the end of a sentence."""
        row, who = self.agent(name), agent_name(name)
        if row is None:
            return f"{who} has never checked in"
        match row.status(self.now):
            case "stopped":
                return f"{who} was stopped at {self.at(row.at)}"
            case "missing":
                return f"{who} has been missing since {self.at(row.at)}"
            case "paused" if row.paused_at is not None:
                reason = f": {row.pause_reason}" if row.pause_reason else ""
                since = self.at(row.paused_at)
                return f"{who} is paused since {since} by {row.paused_by}{reason}"
            case status:
                return f"{who} is {status}"

    def at(self, time: float) -> str:
        """Return a time as people read it."""
        return moment(time, self.now)

    def time(self, name: Time) -> float | None:
        """Return a time of the job; of one on clocks on the wall, when the workstation's shows it.

        Where its zone is not known, that is when the last clock on earth shows it.
        """
        given = getattr(self.body, name, None)
        if isinstance(given, WallClock) and self.zone is not None:
            return at_wall(given.local, self.zone).timestamp()
        time: float | None = getattr(self.job, name)
        return time

    def time_text(self, name: Time) -> str:
        """Return a time of the job as people read it."""
        given = getattr(self.body, name, None)
        if isinstance(given, WallClock):
            return f"{given.local:%Y-%m-%d %H:%M} on its own clock"
        time = self.time(name)
        return "no time" if time is None else self.at(time)

    def when(self, at: float) -> str:
        """Return a time as people read it; a time of the job as it was given."""
        names: tuple[Time, ...] = ("mandatory_at", "offer_at")
        return next((self.time_text(name) for name in names if self.time(name) == at), self.at(at))

    def unless_expired(self, at: float | None = None) -> str:
        """Return what a prospect stands under, as the end of a sentence; at a time, if known."""
        expiry = self.time("expires_at")
        if expiry is None or (at is not None and at < expiry):
            return ""
        return f", unless it has expired by then, at {self.time_text('expires_at')}"

    def windows(self, agent: str) -> str:
        """Return the windows of an agent that the job keeps to; nothing where any time is right."""
        row = self.agent(agent)
        respects = self.body is not None and self.body.respects_windows
        return row.windows if respects and row is not None else ""

    def in_window(self, agent: str, at: float | None = None) -> str:
        """Return the windows of an agent that the job keeps to, as the end of a sentence.

        `at`: when the job starts in them, if that is known.
        """
        windows = self.windows(agent)
        when = f", at {self.at(at)}" if at is not None else ""
        return f", in its next maintenance window ({windows}){when}" if windows else ""

    def first(self, state: State, agent: str | None = None) -> Event | None:
        """Return the first report of a state, by any or one agent."""
        return next(
            (
                event
                for event in self.events
                if event.state == state and agent in {None, event.agent}
            ),
            None,
        )


def agent_name(agent: str) -> str:
    """Return an agent as people call it."""
    return "the service agent" if agent == SERVICE else f"{user_name(agent)}'s agent"


def user_name(agent: str) -> str:
    """Return whose an interactive agent is."""
    return agent.removeprefix(_USERS)


def because(reason: str, joint: str = ": ") -> str:
    """Return a reason as the end of a sentence; nothing where there is none."""
    text = " ".join(reason.split()).rstrip(".")
    return joint + text if text else ""
