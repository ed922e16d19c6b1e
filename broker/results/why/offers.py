"""What is to come of a user's job that has not started: offers, countdowns, the take-over."""

from broker.history.queries import Pair
from broker.results.why.circumstances import SERVICE, Circumstances, Prospect, user_name
from schemas import State

# What agents do unless their settings say otherwise, of which the history knows nothing.
_COUNTDOWN = 300.0
_TAKEOVER_GRACE = 60.0


def offer(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that is offered to users, and what becomes of it without them."""
    if pair.state == State.RECEIVED:
        if not c.is_over("offer_at") and (time := c.time("offer_at")) is not None:
            return Prospect(
                f"{c.workstation} has it, and waits for its offer time, {c.time_text('offer_at')}",
                f"it is offered then to whoever is logged on{c.unless_expired(time)}",
                time,
            )
        if c.users:
            return _about_to_offer(c)
        return _nobody(c, f"{c.workstation} has it, but nobody is known to be logged on there")
    return _offered(c, pair)


def _offered(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job that a user was shown."""
    user = user_name(pair.agent)
    what = _decision(c, pair, user)
    if c.agent(pair.agent) is not None and not c.is_there(pair.agent):
        return _nobody(c, f"{what}, but {c.standing(pair.agent)}")
    if c.status(pair.agent) == "paused":
        return Prospect(
            f"{what}, but {c.standing(pair.agent)}",
            f"it starts nothing until it is told to go on{c.unless_expired()}",
        )
    if pair.state == State.ACCEPTED:
        starts = f"{user}'s agent starts it as soon as there is room for it"
        starts += c.in_window(pair.agent)
        return Prospect(what, starts + c.unless_expired())
    again = pair.until if pair.state == State.POSTPONED else None
    if c.mandatory:
        return _mandatory(c, pair, what, again)
    return _optional(c, what, user, again)


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


def _optional(c: Circumstances, what: str, user: str, again: float | None) -> Prospect:
    does = f"it runs only if {user} says so{c.unless_expired()}"
    if again is not None and again > c.now:
        return Prospect(what, f"it is offered again then; {does}", again)
    return Prospect(what, does, c.time("expires_at"))


def _mandatory(c: Circumstances, pair: Pair, what: str, again: float | None) -> Prospect:
    user, deadline = user_name(pair.agent), _deadline(c, pair)
    own = deadline == c.time("mandatory_at")
    when = c.time_text("mandatory_at") if own else c.at(deadline)
    if window := c.in_window(pair.agent):
        runs = f"it runs after {when}{window}, whatever {user} does{c.unless_expired()}"
        return Prospect(what, runs, again if again is not None and again > c.now else None)
    runs = f"at {when} it runs, whatever {user} does{c.unless_expired(deadline)}"
    if deadline <= c.now:
        return Prospect(what, f"its countdown is over: {user}'s agent starts it now")
    if again is not None and c.now < again < deadline:
        return Prospect(what, f"it is offered again then, and {runs}", again)
    if deadline - c.now <= _COUNTDOWN:
        return Prospect(f"{what}, and it counts down", runs, deadline)
    return Prospect(what, f"{user} may run or postpone it; {runs}", deadline)


def _deadline(c: Circumstances, pair: Pair) -> float:
    """Return when a mandatory job runs that was shown; the user has a whole countdown."""
    shown = c.first(State.OFFERED, pair.agent)
    shown_at = shown.at if shown else pair.at or c.now
    return max(c.time("mandatory_at") or 0.0, shown_at + _COUNTDOWN)


def _nobody(c: Circumstances, what: str) -> Prospect:
    """Tell of a user's job where no user's agent is at work."""
    if not c.mandatory:
        expires = (
            f"; at {c.time_text('expires_at')} the service agent reports it as expired"
            if c.time("expires_at") is not None
            else ""
        )
        return Prospect(what, f"it is offered when a user logs on{expires}", c.time("expires_at"))
    if c.needs_user:
        return Prospect(
            f"{what}, and it needs a user's input",
            f"it is offered at the next logon, and runs at {c.time_text('mandatory_at')} or after"
            f" the user's countdown, whichever is later{c.unless_expired()}",
            c.time("expires_at"),
        )
    return _takeover(c, what)


def _takeover(c: Circumstances, what: str) -> Prospect:
    received = c.first(State.RECEIVED, SERVICE)
    begun = max(c.time("mandatory_at") or 0.0, received.at if received else 0.0)
    at = begun + _TAKEOVER_GRACE
    if c.service is not None and c.status(SERVICE) != "up":
        back = "is told to go on" if c.status(SERVICE) == "paused" else "is back"
        return Prospect(
            f"{what}, and {c.standing(SERVICE)}",
            f"the service agent takes over after {c.time_text('mandatory_at')}, when it {back},"
            f" unless a user logs on before{c.unless_expired()}",
            at if at > c.now else None,
        )
    if at <= c.now:
        return Prospect(
            what,
            "the service agent takes over as soon as it has room for it"
            f"{c.in_window(SERVICE)}{c.unless_expired()}",
        )
    own = begun == c.time("mandatory_at")
    when = f"{c.time_text('mandatory_at')}, or a minute later" if own else c.at(at)
    unless = "unless a user logs on and runs it before"
    if window := c.in_window(SERVICE):
        takes_over = f"the service agent takes over after {when}{window}, {unless}"
        return Prospect(what, takes_over + c.unless_expired())
    takes_over = f"the service agent takes over at {when}, {unless}"
    return Prospect(what, takes_over + c.unless_expired(at), at)
