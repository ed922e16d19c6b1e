"""What is to come of a job on a workstation where it has not started."""

from broker.cli.time_formats import span
from broker.history.projection.projection import QUEUED
from broker.history.queries import Pair
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Prospect,
    Time,
    agent_name,
    because,
)
from broker.results.why.offers import offer
from schemas import State


def wait(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that has not started."""
    if c.withdrawal is not None:
        return _cancelled(c, pair)
    if c.is_over("expires_at"):
        return Prospect(
            f"it expired at {c.time_text('expires_at')}, which {c.workstation} has not told yet:"
            f" {c.standing(SERVICE)}",
            "it never starts; its agents report it as expired when they are there",
        )
    if pair.state == QUEUED:
        return _queued(c)
    if c.background:
        return _by_service(c, pair)
    return offer(c, pair)


def _cancelled(c: Circumstances, pair: Pair) -> Prospect:
    found = c.withdrawal
    assert found is not None  # noqa: S101 - whoever calls has looked
    agent = SERVICE if pair.state == QUEUED else pair.agent
    return Prospect(
        f"it was cancelled by {found.by} at {c.at(found.at)}{because(found.reason)}, and"
        f" {c.workstation} has not told yet that it knows: {c.standing(agent)}",
        f"it does not start: {agent_name(agent)} reports it as cancelled when it has read that",
    )


def _queued(c: Circumstances) -> Prospect:
    what = f"it was sent at {c.at(c.job.created_at)}, and waits in the broker's queue"
    if c.is_there(SERVICE):
        return Prospect(
            f"{what}: {c.standing(SERVICE)}, but has not told of its receipt",
            "the service agent takes it in within moments; if not, see its log, and pcm dead list",
        )
    return Prospect(
        f"{what}: {c.standing(SERVICE)}",
        f"it is taken in when the agent is back, and {_when_back(c)}{c.unless_expired()}",
        c.time("expires_at"),
    )


def _when_back(c: Circumstances) -> str:
    names: tuple[Time, ...] = ("mandatory_at", "offer_at")
    for name in names:
        if c.time(name) is not None and not c.is_over(name):
            does = "starts" if name == "mandatory_at" or c.background else "is offered"
            return f"{does} at {c.time_text(name)}"
    return "starts then" if c.background else "is offered to whoever is logged on"


# The service's jobs


def _by_service(c: Circumstances, pair: Pair) -> Prospect:
    name: Time = "mandatory_at" if c.mandatory else "offer_at"
    what = "mandatory time" if c.mandatory else "offer time"
    time = c.time(name)
    if time is not None and time > c.now:
        windows = c.windows(SERVICE)
        certain = c.status(SERVICE) == "up" and not windows
        unless = c.unless_expired(time if certain else None)
        then = "after that" if windows else "then"
        return Prospect(
            f"{c.workstation} has it, and waits for its {what}, {c.time_text(name)}{_but(c)}",
            f"the service agent starts it {then}{_if_back(c)}{c.in_window(SERVICE)}{unless}",
            None if windows else time,
        )
    received = c.first(State.RECEIVED, SERVICE)
    since = time or pair.at or c.job.created_at
    if received is not None and time is not None:
        since = max(time, received.at)
    return _due(c, since)


def _but(c: Circumstances) -> str:
    return "" if c.status(SERVICE) in {"up", "unknown"} else f"; {c.standing(SERVICE)}"


def _if_back(c: Circumstances) -> str:
    match c.status(SERVICE):
        case "up" | "unknown":
            return ""
        case "paused":
            return ", or when it is told to go on"
    return ", or when it is back"


def _due(c: Circumstances, since: float) -> Prospect:
    due = f"it is due since {c.at(since)}"
    if c.service is not None and c.status(SERVICE) != "up":
        back = "is told to go on" if c.status(SERVICE) == "paused" else "is back"
        return Prospect(
            f"{due}, but {c.standing(SERVICE)}",
            f"it starts when the agent {back}{c.in_window(SERVICE)}{c.unless_expired()}",
            c.time("expires_at"),
        )
    if windows := c.windows(SERVICE):
        limit = span(c.body.command.timeout.total_seconds()) if c.body else ""
        return Prospect(
            f"{due}, and waits for a maintenance window ({windows}) that its time limit of {limit}"
            " fits into",
            f"the service agent starts it in the next such window{c.unless_expired()}",
            c.time("expires_at"),
        )
    if c.service is None:
        return Prospect(
            f"{due}, and {c.standing(SERVICE)}",
            f"it starts as soon as the service agent has room for it{c.unless_expired()}",
        )
    return Prospect(
        f"{due}; the service agent runs {c.service.running} commands, and {c.service.waiting} wait",
        "it starts as soon as there is room for it, in the order of their times"
        f"{c.unless_expired()}",
    )
