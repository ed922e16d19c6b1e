"""Explain a foreground job that was received and has not started: offers, countdown, takeover."""

from broker.cli.time_formats import span
from broker.history.queries.rows import OutcomeRow
from broker.results.why.circumstances import SERVICE, Circumstances, Explanation, user_name
from broker.results.why.next_step import NextStep, service_step, user_step
from schemas import State
from schemas.policy import Step

_MINUTE = 60


def explain_foreground(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a foreground job that was received and has not started."""
    if outcome.state != State.RECEIVED:
        return _offered(c, outcome)
    expected = user_step(c, c.users[0].agent if c.users else "")
    if (at := expected.next_at(c.now)) is not None:
        return Explanation(
            f"{c.workstation} received it; its offer time is {c.when(at)}",
            f"it is offered then to the users who are logged on{c.unless_expired(at)}",
            at,
        )
    if c.users:
        return _about_to_offer(c)
    return _without_user(c, f"{c.workstation} received it, but no user is known to be logged on")


def expires_first(c: Circumstances) -> str:
    """Return, as a sentence, that a job expires before an agent can start it."""
    return f"it expires at {c.time_text('expires_at')}, before it may start"


def _offered(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job that was shown to a user."""
    user = user_name(outcome.agent)
    why = _decision(c, outcome, user)
    if c.agent(outcome.agent) is not None and not c.is_connected(outcome.agent):
        return _without_user(c, f"{why}, but {c.status_text(outcome.agent)}")
    is_paused = c.status(outcome.agent) == "paused"
    expected = user_step(c, outcome.agent, paused=is_paused)
    at = expected.next_at(c.now)
    if is_paused:
        return Explanation(
            f"{why}, but {c.status_text(outcome.agent)}",
            f"the agent starts nothing until it is resumed{c.unless_expired()}",
            at,
        )
    if outcome.state == State.ACCEPTED or expected.next.step is Step.ACCEPT:
        if expected.next.step is Step.CLOSE:
            return Explanation(why, expires_first(c), at)
        starts = f"{user}'s agent starts it as soon as it has capacity"
        starts += c.in_window(outcome.agent, at)
        return Explanation(why, starts + c.unless_expired(at), at)
    if c.mandatory:
        return _mandatory(c, outcome, why, expected)
    return _optional(c, why, user, expected)


def _decision(c: Circumstances, outcome: OutcomeRow, user: str) -> str:
    at = c.at(outcome.at or c.now)
    match outcome.state:
        case State.OFFERED:
            return f"it was offered to {user} at {at}, who has not decided"
        case State.POSTPONED:
            until = f" until {c.at(outcome.until)}" if outcome.until is not None else ""
            return f"{user} postponed it{until}"
    return f"{user} accepted it at {at}"


def _about_to_offer(c: Circumstances) -> Explanation:
    agents = [row.agent for row in c.users]
    having = [agent for agent in agents if c.first(State.RECEIVED, agent)]
    agent = (having or agents)[0]
    if having or c.is_connected(SERVICE):  # the service agent hands it over
        return Explanation(
            f"{c.workstation} received it; {c.status_text(agent)}, but has not reported an offer",
            f"it is offered to {user_name(agent)} within moments{c.unless_expired()}",
        )
    return Explanation(
        f"{c.workstation} received it; {c.status_text(agent)}, but has not received it itself, and"
        f" {c.status_text(SERVICE)}",
        "it is offered when the service agent, which hands over what was sent before, is running"
        f"{c.unless_expired()}",
    )


def _optional(c: Circumstances, why: str, user: str, expected: NextStep) -> Explanation:
    runs = f"it runs only if {user} runs it{c.unless_expired()}"
    if expected.next.step is Step.OFFER:
        runs = f"it is offered again then; {runs}"
    return Explanation(why, runs, expected.next_at(c.now))


def _mandatory(c: Circumstances, outcome: OutcomeRow, why: str, expected: NextStep) -> Explanation:
    user, at = user_name(outcome.agent), expected.next_at(c.now)
    step = expected.next.step
    if step is Step.CLOSE:
        return Explanation(why, expires_first(c), at)
    if step is Step.RUN and expected.is_now(c.now):
        return Explanation(why, f"its countdown is over: {user}'s agent starts it now")
    runs = _runs(c, outcome.agent, expected)
    if step is Step.OFFER:
        return Explanation(why, f"it is offered again then, and {runs}", at)
    if c.windows(outcome.agent):
        return Explanation(why, runs, at)
    if expected.counts_down:
        return Explanation(f"{why}, and its countdown runs", runs, at)
    return Explanation(why, f"{user} may run or postpone it; {runs}", at)


def _runs(c: Circumstances, agent: str, expected: NextStep) -> str:
    """Return, as a sentence, when a mandatory job that was shown to a user runs."""
    row, anyway = c.agent(agent), f"with or without {user_name(agent)}'s consent"
    due = c.when(expected.due_at)
    if c.windows(agent):
        at = expected.next_at(c.now) if expected.next.step is Step.RUN else None
        return f"it runs after {due}{c.in_window(agent, at)}, {anyway}{c.unless_expired(at)}"
    if row is not None and row.countdown is not None:
        return f"at {due} it runs, {anyway}{c.unless_expired(expected.due_at)}"
    if expected.due_at <= c.now:
        return f"it runs within its countdown, {anyway}{c.unless_expired()}"
    when = f"at {due} or after its countdown, whichever is later"
    return f"it runs {when}, {anyway}{c.unless_expired()}"


def _without_user(c: Circumstances, why: str) -> Explanation:
    """Explain a foreground job while no interactive agent is connected."""
    expected = service_step(c)
    if not c.mandatory:
        expires = (
            f"; at {c.time_text('expires_at')} the service agent reports it as expired"
            if c.time("expires_at") is not None
            else ""
        )
        at = expected.next_at(c.now)
        return Explanation(why, f"it is offered when a user logs on{expires}", at)
    if c.needs_user:
        return Explanation(
            f"{why}, and it needs a user's input",
            f"it is offered at the next logon, and runs at {c.time_text('mandatory_at')} or after"
            f" the user's countdown, whichever is later{c.unless_expired()}",
            expected.next_at(c.now),
        )
    return _takeover(c, why, expected)


def _takeover(c: Circumstances, why: str, expected: NextStep) -> Explanation:
    at = expected.next_at(c.now)
    if c.service is not None and c.status(SERVICE) != "up":
        back = "is resumed" if c.status(SERVICE) == "paused" else "is back"
        return Explanation(
            f"{why}, and {c.status_text(SERVICE)}",
            f"the service agent takes over after {c.time_text('mandatory_at')}, when it {back},"
            f" unless a user logs on before{c.unless_expired()}",
            at,
        )
    if expected.next.step is Step.CLOSE:
        return Explanation(why, expires_first(c), at)
    grace = c.service.takeover_grace if c.service else None
    if grace is not None and expected.next.at <= c.now:
        return Explanation(
            why,
            "the service agent takes over as soon as it has capacity"
            f"{c.in_window(SERVICE)}{c.unless_expired()}",
        )
    due = _takeover_time(c, expected.due_at, grace)
    unless = "unless a user logs on and runs it before"
    when = f"after {due}{c.in_window(SERVICE, at)}" if c.windows(SERVICE) else f"at {due}"
    return Explanation(
        why, f"the service agent takes over {when}, {unless}{c.unless_expired(at)}", at
    )


def _takeover_time(c: Circumstances, due_at: float, grace: float | None) -> str:
    if grace is None:
        return f"{c.when(due_at)}, or its grace period later"
    mandatory_at = c.time("mandatory_at")
    if mandatory_at is None or due_at != mandatory_at + grace:
        return c.at(due_at)
    later = "a minute" if grace == _MINUTE else span(grace)
    return c.time_text("mandatory_at") + (f", or {later} later" if grace else "")
