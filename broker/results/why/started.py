"""What is to come of a job on a workstation where its command was started."""

from broker.history.queries import Pair
from broker.results.why.circumstances import SERVICE, Circumstances, Prospect, agent_name, because
from schemas import State

_MISSING_AFTER = 600.0  # an agent's setting, of which the history knows nothing
_MOST_STARTS = 5


def run_on(c: Circumstances, pair: Pair) -> Prospect:
    """Tell of a job whose command was started."""
    started, who = pair.at or c.now, agent_name(pair.agent)
    what = f"{who} runs it since {c.at(started)}{because(pair.reason, ', ')}"
    row = c.agent(pair.agent)
    if row is not None and not c.is_there(pair.agent) and row.at >= started:
        return _left_alone(c, pair, row.at)
    if (found := c.withdrawal) is not None:
        return Prospect(
            f"{what}; it was cancelled by {found.by} at {c.at(found.at)}{because(found.reason)},"
            " and still runs",
            f"{who} ends it: it is told to stop, and killed if it does not; then it is cancelled",
        )
    if c.body is None:
        return Prospect(what, "it ends by itself, or when its time limit is over")
    limit = started + c.body.command.timeout.total_seconds()
    if limit <= c.now:
        return Prospect(what, f"{who} ends it: its time limit was over at {c.at(limit)}")
    return Prospect(
        what, f"it ends by itself, or is ended at {c.at(limit)}, when its time limit is over", limit
    )


def _left_alone(c: Circumstances, pair: Pair, since: float) -> Prospect:
    """Tell of a command whose agent is gone: nobody knows now whether it runs."""
    who = agent_name(pair.agent)
    what = (
        f"{who} started it at {c.at(pair.at or c.now)}, and {c.standing(pair.agent)}: whether it"
        " still runs is not known"
    )
    if c.body is not None and c.body.command.survives_agent:
        return Prospect(
            what, f"the command goes on without {who}, which takes it up when it is back"
        )
    count = sum(event.state == State.STARTED for event in c.events)
    if c.body is not None and c.body.command.rerun_interrupted and count < _MOST_STARTS:
        return Prospect(
            what,
            f"if it was interrupted, {who} starts it again when it is back, which would be start"
            f" {count + 1} of {_MOST_STARTS} at most",
        )
    if pair.agent != SERVICE and c.is_there(SERVICE):
        at = since + _MISSING_AFTER
        when = f"at {c.at(at)}" if at > c.now else "soon"
        return Prospect(
            what,
            f"{who} reports how it ended when it is back; if not, the service agent reports it as"
            f" interrupted {when}",
            at if at > c.now else None,
        )
    return Prospect(what, f"{who} reports how it ended when it is back")
