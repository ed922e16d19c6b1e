"""What is to come of a user's job that has not started: offers, countdowns, the take-over."""

from broker.cli.time_formats import span
from broker.history.queries import Pair
from broker.results.why.circumstances import SERVICE, Circumstances, Prospect, user_name
from broker.results.why.expected import Expected, by_service, by_user
from schemas import State
from schemas.policy import Step

_MINUTE = 60


def offer(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that is offered to users, and what becomes of it without them."""
    if pair.state != State.RECEIVED:
        return _offered(c, pair)
    expected = by_user(c, c.users[0].agent if c.users else "")
    if (at := expected.next_at(c.now)) is not None:
        return Prospect(
            f"{c.workstation} has it, and waits for its offer time, {c.when(at)}",
            f"it is offered then to whoever is logged on{c.unless_expired(at)}",
            at,
        )
    if c.users:
        return _about_to_offer(c)
    return _nobody(c, f"{c.workstation} has it, but nobody is known to be logged on there")


def expires_first(c: Circumstances) -> str:
    """Return that a job expires before an agent may start it, as a sentence."""
    return f"it expires at {c.time_text('expires_at')}, before it may start"


def _offered(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that a user was shown."""
    user = user_name(pair.agent)
    what = _decision(c, pair, user)
    if c.agent(pair.agent) is not None and not c.is_there(pair.agent):
        return _nobody(c, f"{what}, but {c.standing(pair.agent)}")
    is_paused = c.status(pair.agent) == "paused"
    expected = by_user(c, pair.agent, stopped=is_paused)
    at = expected.next_at(c.now)
    if is_paused:
        return Prospect(
            f"{what}, but {c.standing(pair.agent)}",
            f"it starts nothing until it is told to go on{c.unless_expired()}",
            at,
        )
    if pair.state == State.ACCEPTED or expected.next.step is Step.ACCEPT:
        if expected.next.step is Step.CLOSE:
            return Prospect(what, expires_first(c), at)
        starts = f"{user}'s agent starts it as soon as there is room for it"
        starts += c.in_window(pair.agent, at)
        return Prospect(what, starts + c.unless_expired(at), at)
    if c.mandatory:
        return _mandatory(c, pair, what, expected)
    return _optional(c, what, user, expected)


def _decision(c: Circumstances, pair: Pair, user: str) -> str:
    at = c.at(pair.at or c.now)
    match pair.state:
        case State.OFFERED:
            return f"it was offered to {user} at {at}, who has not decided"
        case State.POSTPONED:
            until = f" until {c.at(pair.until)}" if pair.until is not None else ""
            return f"{user} postponed it{until}"
    return f"{user} wanted it to run at {at}"


def _about_to_offer(c: Circumstances) -> Prospect:
    agent = c.users[0]
    return Prospect(
        f"{c.workstation} has it; {c.standing(agent.agent)}, and has not told that it is offered",
        f"it is offered to {user_name(agent.agent)} within moments{c.unless_expired()}",
    )


def _optional(c: Circumstances, what: str, user: str, expected: Expected) -> Prospect:
    does = f"it runs only if {user} says so{c.unless_expired()}"
    if expected.next.step is Step.OFFER:
        does = f"it is offered again then; {does}"
    return Prospect(what, does, expected.next_at(c.now))


def _mandatory(c: Circumstances, pair: Pair, what: str, expected: Expected) -> Prospect:
    user, at = user_name(pair.agent), expected.next_at(c.now)
    step = expected.next.step
    if step is Step.CLOSE:
        return Prospect(what, expires_first(c), at)
    if step is Step.RUN and expected.is_now(c.now):
        return Prospect(what, f"its countdown is over: {user}'s agent starts it now")
    runs = _runs(c, pair.agent, expected)
    if step is Step.OFFER:
        return Prospect(what, f"it is offered again then, and {runs}", at)
    if c.windows(pair.agent):
        return Prospect(what, runs, at)
    if expected.counts_down:
        return Prospect(f"{what}, and it counts down", runs, at)
    return Prospect(what, f"{user} may run or postpone it; {runs}", at)


def _runs(c: Circumstances, agent: str, expected: Expected) -> str:
    """Return when a mandatory job runs that a user was shown, as a sentence."""
    row, does = c.agent(agent), f"whatever {user_name(agent)} does"
    due = c.when(expected.due_at)
    if c.windows(agent):
        at = expected.next_at(c.now) if expected.next.step is Step.RUN else None
        return f"it runs after {due}{c.in_window(agent, at)}, {does}{c.unless_expired(at)}"
    if row is not None and row.countdown is not None:
        return f"at {due} it runs, {does}{c.unless_expired(expected.due_at)}"
    if expected.due_at <= c.now:
        return f"it runs within its countdown, {does}{c.unless_expired()}"
    when = f"at {due} or after its countdown, whichever is later"
    return f"it runs {when}, {does}{c.unless_expired()}"


def _nobody(c: Circumstances, what: str) -> Prospect:
    """Tell of a user's job where no user's agent is at work."""
    expected = by_service(c)
    if not c.mandatory:
        expires = (
            f"; at {c.time_text('expires_at')} the service agent reports it as expired"
            if c.time("expires_at") is not None
            else ""
        )
        at = expected.next_at(c.now)
        return Prospect(what, f"it is offered when a user logs on{expires}", at)
    if c.needs_user:
        return Prospect(
            f"{what}, and it needs a user's input",
            f"it is offered at the next logon, and runs at {c.time_text('mandatory_at')} or after"
            f" the user's countdown, whichever is later{c.unless_expired()}",
            expected.next_at(c.now),
        )
    return _takeover(c, what, expected)


def _takeover(c: Circumstances, what: str, expected: Expected) -> Prospect:
    at = expected.next_at(c.now)
    if c.service is not None and c.status(SERVICE) != "up":
        back = "is told to go on" if c.status(SERVICE) == "paused" else "is back"
        return Prospect(
            f"{what}, and {c.standing(SERVICE)}",
            f"the service agent takes over after {c.time_text('mandatory_at')}, when it {back},"
            f" unless a user logs on before{c.unless_expired()}",
            at,
        )
    if expected.next.step is Step.CLOSE:
        return Prospect(what, expires_first(c), at)
    grace = c.service.takeover_grace if c.service else None
    if grace is not None and expected.next.at <= c.now:
        return Prospect(
            what,
            "the service agent takes over as soon as it has room for it"
            f"{c.in_window(SERVICE)}{c.unless_expired()}",
        )
    due = _takeover_time(c, expected.due_at, grace)
    unless = "unless a user logs on and runs it before"
    when = f"after {due}{c.in_window(SERVICE, at)}" if c.windows(SERVICE) else f"at {due}"
    return Prospect(
        what, f"the service agent takes over {when}, {unless}{c.unless_expired(at)}", at
    )


def _takeover_time(c: Circumstances, due_at: float, grace: float | None) -> str:
    if grace is None:
        return f"{c.when(due_at)}, or its grace period later"
    mandatory_at = c.time("mandatory_at")
    if mandatory_at is None or due_at != mandatory_at + grace:
        return c.at(due_at)
    later = "a minute" if grace == _MINUTE else span(grace)
    return c.time_text("mandatory_at") + (f", or {later} later" if grace else "")
