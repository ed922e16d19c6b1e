"""Explain a job on a workstation where it has not started."""

from broker.cli.time_formats import span
from broker.history.projection.projection import QUEUED
from broker.history.queries.rows import OutcomeRow
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Explanation,
    agent_phrase,
    because,
    lost_text,
)
from broker.results.why.next_step import NextStep, service_step, user_step
from broker.results.why.offers import expires_first, explain_foreground
from schemas import State
from schemas.policy import Next, Step


def explain_not_started(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job that has not started."""
    following = service_step(c).next
    if following.step is Step.CLOSE and following.at <= c.now:
        return _never_starts(c, outcome, following)
    if outcome.state == QUEUED:
        return _queued(c)
    if c.background:
        return _background(c)
    return explain_foreground(c, outcome)


def _never_starts(c: Circumstances, outcome: OutcomeRow, following: Next) -> Explanation:
    """Explain a job that an agent ends as soon as it processes it."""
    if following.state is State.CANCELLED:
        return _cancelled(c, outcome)
    if following.state is State.NOT_APPLICABLE:
        return Explanation(
            f"it cannot run on {c.workstation}{because(following.reason)}, which {c.workstation}"
            f" has not reported yet: {c.status_text(SERVICE)}",
            "it never starts; its agents report it as not applicable when they are back",
        )
    return Explanation(
        f"it expired at {c.time_text('expires_at')}, which {c.workstation} has not reported yet:"
        f" {c.status_text(SERVICE)}",
        "it never starts; its agents report it as expired when they are back",
    )


def _cancelled(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    cancellation = c.cancellation
    assert cancellation is not None  # noqa: S101 - the caller has checked it
    agent = SERVICE if outcome.state == QUEUED else outcome.agent
    return Explanation(
        f"it was cancelled by {cancellation.by} at {c.at(cancellation.at)}"
        f"{because(cancellation.reason)}, which {c.workstation} has not reported yet:"
        f" {c.status_text(agent)}",
        f"it does not start; {agent_phrase(agent)} reports it as cancelled when it has received the"
        " cancellation",
    )


def _queued(c: Circumstances) -> Explanation:
    why = f"it was sent at {c.at(c.job.created_at)} and is queued"
    if lost := lost_text(c):
        return Explanation(
            f"{why}{lost}",
            f"if it was lost, it never starts there, and expires at {c.time_text('expires_at')}: to"
            f" send it again: pcm rerun {c.job.id} --workstation {c.workstation}",
            c.time("expires_at"),
        )
    if c.is_connected(SERVICE):
        return Explanation(
            f"{why}: {c.status_text(SERVICE)}, but has not reported it as received",
            "the service agent receives it, unless the broker has dropped it (a policy can limit"
            " queues); if it does not soon, see the agent's log, and pcm dead list",
        )
    return Explanation(
        f"{why}: {c.status_text(SERVICE)}",
        "it is received when the agent is back, unless the broker drops its queue before, and"
        f" {_when_received(c)}{c.unless_expired()}",
        c.time("expires_at"),
    )


def _when_received(c: Circumstances) -> str:
    """Return what happens once an agent has received the job, as the end of a sentence."""
    if not c.background:
        offer_at = user_step(c, "").next.at
        when = f"at {c.when(offer_at)}" if offer_at > c.now else "to the users who are logged on"
        return f"is offered {when}"
    due_at = service_step(c).due_at
    return f"starts at {c.when(due_at)}" if due_at > c.now else "starts then"


# Background jobs


def _background(c: Circumstances) -> Explanation:
    expected = service_step(c)
    if expected.due_at <= c.now:
        return _due(c, expected)
    name = "mandatory time" if c.mandatory else "offer time"
    why = f"{c.workstation} received it; its {name} is {c.when(expected.due_at)}{_but(c)}"
    at = expected.next_at(c.now)
    if expected.next.step is Step.CLOSE:
        return Explanation(why, expires_first(c), at)
    then = "after that" if c.windows(SERVICE) else "then"
    unless = c.unless_expired(at if c.status(SERVICE) == "up" else None)
    return Explanation(
        why,
        f"the service agent starts it {then}{_if_back(c)}{c.in_window(SERVICE, at)}{unless}",
        at,
    )


def _but(c: Circumstances) -> str:
    return "" if c.status(SERVICE) in {"up", "unknown"} else f"; {c.status_text(SERVICE)}"


def _if_back(c: Circumstances) -> str:
    match c.status(SERVICE):
        case "up" | "unknown":
            return ""
        case "paused":
            return ", or when it is resumed"
    return ", or when it is back"


def _due(c: Circumstances, expected: NextStep) -> Explanation:
    due, at = f"it has been due since {c.at(expected.due_at)}", expected.next_at(c.now)
    if c.service is None:
        return Explanation(
            f"{due}, and {c.status_text(SERVICE)}",
            f"it starts as soon as the service agent has capacity{c.unless_expired()}",
            at,
        )
    if c.status(SERVICE) != "up":
        back = "is resumed" if c.status(SERVICE) == "paused" else "is back"
        return Explanation(
            f"{due}, but {c.status_text(SERVICE)}",
            f"it starts when the agent {back}{c.in_window(SERVICE)}{c.unless_expired()}",
            service_step(c, paused=True).next_at(c.now),
        )
    if (windows := c.windows(SERVICE)) and not expected.is_now(c.now):
        timeout = span(c.body.command.timeout.total_seconds()) if c.body else ""
        why = f"{due}, and needs a maintenance window ({windows}) for its timeout of {timeout}"
        if expected.next.step is Step.CLOSE:
            return Explanation(why, expires_first(c), at)
        when = f", at {c.at(at)}" if at is not None else ""
        starts = f"the service agent starts it in the next such window{when}{c.unless_expired(at)}"
        return Explanation(why, starts, at)
    return Explanation(
        f"{due}; the service agent has {c.service.running} running and {c.service.waiting} waiting"
        " jobs",
        "it starts as soon as the agent has capacity, in the order of the jobs' times"
        f"{_after_earlier(c)}{c.unless_expired()}",
        at,
    )


def _after_earlier(c: Circumstances) -> str:
    """Return what an earlier occurrence means for the start, as the end of a sentence."""
    match c.body.overlap if c.body else None:
        case "queue":
            return ", and no earlier occurrence of its schedule runs there"
        case "skip":
            return "; if an earlier occurrence of its schedule runs there then, it is skipped"
    return ""
