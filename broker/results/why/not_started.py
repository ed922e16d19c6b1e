"""What is to come of a job on a workstation where it has not started."""

from broker.cli.time_formats import span
from broker.history.projection.projection import QUEUED
from broker.history.queries import Pair
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Prospect,
    agent_name,
    because,
)
from broker.results.why.expected import Expected, by_service, by_user
from broker.results.why.offers import expires_first, offer
from schemas import State
from schemas.policy import Next, Step


def wait(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that has not started."""
    following = by_service(c).next
    if following.step is Step.CLOSE and following.at <= c.now:
        return _closes(c, pair, following)
    if pair.state == QUEUED:
        return _queued(c)
    if c.background:
        return _by_service(c)
    return offer(c, pair)


def _closes(c: Circumstances, pair: Pair, following: Next) -> Prospect:
    """Tell of a job that every agent ends as soon as it looks at it."""
    if following.state is State.CANCELLED:
        return _cancelled(c, pair)
    if following.state is State.NOT_APPLICABLE:
        return Prospect(
            f"it cannot run on {c.workstation}{because(following.reason)}, which {c.workstation}"
            f" has not told yet: {c.standing(SERVICE)}",
            "it never starts; its agents report it as not applicable when they are there",
        )
    return Prospect(
        f"it expired at {c.time_text('expires_at')}, which {c.workstation} has not told yet:"
        f" {c.standing(SERVICE)}",
        "it never starts; its agents report it as expired when they are there",
    )


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
    """Return what becomes of the job once an agent has it, as the end of a sentence."""
    if not c.background:
        offer_at = by_user(c, "").next.at
        when = f"at {c.when(offer_at)}" if offer_at > c.now else "to whoever is logged on"
        return f"is offered {when}"
    due_at = by_service(c).due_at
    return f"starts at {c.when(due_at)}" if due_at > c.now else "starts then"


# The service's jobs


def _by_service(c: Circumstances) -> Prospect:
    expected = by_service(c)
    if expected.due_at <= c.now:
        return _due(c, expected)
    what = "mandatory time" if c.mandatory else "offer time"
    why = f"{c.workstation} has it, and waits for its {what}, {c.when(expected.due_at)}{_but(c)}"
    at = expected.next_at(c.now)
    if expected.next.step is Step.CLOSE:
        return Prospect(why, expires_first(c), at)
    then = "after that" if c.windows(SERVICE) else "then"
    unless = c.unless_expired(at if c.status(SERVICE) == "up" else None)
    return Prospect(
        why,
        f"the service agent starts it {then}{_if_back(c)}{c.in_window(SERVICE, at)}{unless}",
        at,
    )


def _but(c: Circumstances) -> str:
    return "" if c.status(SERVICE) in {"up", "unknown"} else f"; {c.standing(SERVICE)}"


def _if_back(c: Circumstances) -> str:
    match c.status(SERVICE):
        case "up" | "unknown":
            return ""
        case "paused":
            return ", or when it is told to go on"
    return ", or when it is back"


def _due(c: Circumstances, expected: Expected) -> Prospect:
    due, at = f"it is due since {c.at(expected.due_at)}", expected.next_at(c.now)
    if c.service is None:
        return Prospect(
            f"{due}, and {c.standing(SERVICE)}",
            f"it starts as soon as the service agent has room for it{c.unless_expired()}",
            at,
        )
    if c.status(SERVICE) != "up":
        back = "is told to go on" if c.status(SERVICE) == "paused" else "is back"
        return Prospect(
            f"{due}, but {c.standing(SERVICE)}",
            f"it starts when the agent {back}{c.in_window(SERVICE)}{c.unless_expired()}",
            by_service(c, stopped=True).next_at(c.now),
        )
    if (windows := c.windows(SERVICE)) and not expected.is_now(c.now):
        limit = span(c.body.command.timeout.total_seconds()) if c.body else ""
        why = (
            f"{due}, and waits for a maintenance window ({windows}) that its time limit of {limit}"
            " fits into"
        )
        if expected.next.step is Step.CLOSE:
            return Prospect(why, expires_first(c), at)
        when = f", at {c.at(at)}" if at is not None else ""
        starts = f"the service agent starts it in the next such window{when}{c.unless_expired(at)}"
        return Prospect(why, starts, at)
    return Prospect(
        f"{due}; the service agent runs {c.service.running} commands, and {c.service.waiting} wait",
        "it starts as soon as there is room for it, in the order of their times"
        f"{c.unless_expired()}",
        at,
    )
