"""Explain a job on a workstation where its command was started."""

from broker.history.queries.rows import OutcomeRow
from broker.results.why.circumstances import (
    SERVICE,
    Circumstances,
    Explanation,
    agent_phrase,
    because,
)
from schemas import State
from schemas.policy import MAX_STARTS


def explain_started(c: Circumstances, outcome: OutcomeRow) -> Explanation:
    """Explain a job whose command was started."""
    started, agent = outcome.at or c.now, agent_phrase(outcome.agent)
    why = f"{agent} has been running it since {c.at(started)}{because(outcome.reason, ', ')}"
    row = c.agent(outcome.agent)
    if row is not None and not c.is_connected(outcome.agent) and row.at >= started:
        return _agent_gone(c, outcome, row.at)
    if (cancellation := c.cancellation) is not None:
        return Explanation(
            f"{why}; it was cancelled by {cancellation.by} at {c.at(cancellation.at)}"
            f"{because(cancellation.reason)}, and still runs",
            f"{agent} ends it: it asks the command to stop, and kills it if it does not; then the"
            " job is cancelled",
        )
    if c.body is None:
        return Explanation(why, "it ends by itself, or at its timeout")
    limit = started + c.body.command.timeout.total_seconds()
    if limit <= c.now:
        return Explanation(why, f"{agent} ends it: its timeout was at {c.at(limit)}")
    return Explanation(why, f"it ends by itself, or at its timeout at {c.at(limit)}", limit)


def _agent_gone(c: Circumstances, outcome: OutcomeRow, since: float) -> Explanation:
    """Explain a started job whose agent is stopped or missing."""
    agent = agent_phrase(outcome.agent)
    why = (
        f"{agent} started it at {c.at(outcome.at or c.now)}, and {c.status_text(outcome.agent)}:"
        " whether it still runs is not known"
    )
    if c.body is not None and c.body.command.survives_agent:
        return Explanation(
            why, f"the command continues without {agent}, which resumes it when it is back"
        )
    count = sum(event.state == State.STARTED for event in c.events)
    if c.body is not None and c.body.command.rerun_interrupted and count < MAX_STARTS:
        return Explanation(
            why,
            f"if it was interrupted, {agent} starts it again when it is back, as start"
            f" {count + 1} of {MAX_STARTS} at most",
        )
    if outcome.agent != SERVICE and c.service is not None and c.is_connected(SERVICE):
        at = _given_up_at(c, since, c.service.missing_after)
        when = f"at {c.at(at)}" if at > c.now else "soon"
        if at > c.now and c.status(outcome.agent) == "missing":
            when += " or later"  # it may have gone after its last check-in
        return Explanation(
            why,
            f"{agent} reports how it ended when it is back; if not, the service agent reports it as"
            f" interrupted {when}",
            at if at > c.now else None,
        )
    return Explanation(why, f"{agent} reports how it ended when it is back")


def _given_up_at(c: Circumstances, since: float, missing_after: float) -> float:
    """Return when the service ends a job of an agent that has been away since a time."""
    if c.body is not None and c.body.command.rerun_interrupted:
        since = max(since, c.time("expires_at") or since)  # until then the agent may start it again
    return since + missing_after
