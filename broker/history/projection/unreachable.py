"""Write the outcomes of jobs that can no longer reach a workstation."""

from sqlalchemy import Connection, delete, select, update

from broker.amqp.topology import agent_word
from broker.history.schema import agents, machines, memberships, outcomes, workstations
from schemas import AgentsRevoked, WorkstationForgotten
from schemas.reports.report import Rank

UNREACHABLE = "unreachable"
QUEUED_RANK = 0
"""The rank of an outcome without a report; see `schemas.reports.report.Rank`."""

# Higher than any report before a start: only later reports of a start replace it.
_RANK, _RANK_AT = Rank.ACCEPTED, 1e300


def forget_workstation(connection: Connection, record: WorkstationForgotten, offset: int) -> None:
    """Delete a workstation; jobs in its queues will never reach it."""
    name = record.workstation
    for column in (
        workstations.c.name,
        memberships.c.workstation,
        agents.c.workstation,
        machines.c.workstation,
    ):
        connection.execute(delete(column.table).where(column == name))
    reason = f"{record.sender} had the workstation forgotten"
    _set_unreachable(connection, record, offset, Rank.STARTED, reason)


def mark_revoked(connection: Connection, record: AgentsRevoked, offset: int) -> None:
    """Mark agents as revoked; jobs in the service agent's queue will never reach it."""
    words = set(map(agent_word, record.agents))
    of_workstation = agents.c.workstation == record.workstation
    known = connection.scalars(select(agents.c.agent).where(of_workstation))
    revoked = [agent for agent in known if agent_word(agent) in words]
    connection.execute(
        update(agents)
        .where(of_workstation, agents.c.agent.in_(revoked))
        .values(revoked_at=record.created_at.timestamp())
    )
    if record.is_unreachable:
        reason = f"{record.sender} had the service agent's login revoked"
        _set_unreachable(connection, record, offset, QUEUED_RANK, reason)


def _set_unreachable(
    connection: Connection,
    record: WorkstationForgotten | AgentsRevoked,
    offset: int,
    most: int,
    reason: str,
) -> None:
    """Set the outcomes up to a rank that a workstation can no longer change."""
    connection.execute(
        update(outcomes)
        .where(outcomes.c.workstation == record.workstation, outcomes.c.rank <= most)
        .values(
            state=UNREACHABLE,
            rank=_RANK,
            rank_at=_RANK_AT,
            rank_offset=offset,
            at=record.created_at.timestamp(),
            reason=reason,
        )
    )
