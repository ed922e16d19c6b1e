"""What agents say when they check in: who is there, in which groups, and how it goes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from broker.history.projection.upserts import put
from broker.history.schema import POLICY, agents, memberships, workstations
from schemas import CheckIn

_SERVICE = "service"
_BY_SERVICE = select(agents.c.agent).where(
    agents.c.workstation == bindparam("its_name"), agents.c.agent == _SERVICE
)
_LEAVE = delete(memberships).where(memberships.c.workstation == bindparam("its_name"))


def write(connection: Connection, check_ins: Sequence[tuple[CheckIn, int]]) -> None:
    """Write check-ins, each with its offset, in their order."""
    facts = [(told, offset, told.facts.model_dump()) for told, offset in check_ins]
    if not facts:
        return
    seen = [
        {
            "name": told.workstation,
            "first_seen": told.at.timestamp(),
            "seen_at": told.at.timestamp(),
            "seen_offset": offset,
            **known,
        }
        for told, offset, known in facts
    ]
    put(connection, workstations, seen, ("seen_at", "seen_offset", *facts[0][2]))
    groups = _groups(connection, [told for told, _ in check_ins])
    if groups:
        connection.execute(_LEAVE, [{"its_name": name} for name in groups])
    members = [{"group": group, "workstation": name} for name in groups for group in groups[name]]
    put(connection, memberships, members)
    rows = [_agent(told) for told, _ in check_ins]
    changed = tuple(name for name in rows[0] if name not in {"workstation", "agent"})
    put(connection, agents, rows, changed)


def _groups(connection: Connection, check_ins: Sequence[CheckIn]) -> dict[str, Sequence[str]]:
    """Return the groups of workstations: the service's word, where it has ever said one."""
    groups: dict[str, Sequence[str]] = {}
    served: set[str] = set()
    for told in check_ins:
        name = told.workstation
        if told.agent == _SERVICE:
            served.add(name)
        elif name in served or connection.scalar(_BY_SERVICE, {"its_name": name}) is not None:
            continue
        groups[name] = told.groups
    return groups


def _policy(told: CheckIn) -> str:
    """Return by what an agent decides, as the history keeps it."""
    return told.model_dump_json(include=set(POLICY), exclude_none=True)


def _agent(told: CheckIn) -> dict[str, Any]:
    pause = told.pause
    return {
        "workstation": told.workstation,
        "agent": told.agent,
        "up": told.up,
        "paused": pause is not None,
        "paused_at": pause.created_at.timestamp() if pause else None,
        "paused_by": pause.sender if pause else "",
        "pause_reason": pause.reason if pause else "",
        "at": told.at.timestamp(),
        "interval": told.interval.total_seconds(),
        "program": told.program,
        "windows": _policy(told),
        "waiting": told.waiting,
        "running": told.running,
        "signed_only": told.signed_only,
        "sealing_key": told.sealing_key or "",
    }
