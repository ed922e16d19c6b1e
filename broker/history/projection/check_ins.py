"""Project check-ins onto the tables of workstations, agents and groups."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from broker.history.projection import package_rows
from broker.history.projection.upserts import put
from broker.history.schema import POLICY, agents, machines, memberships, workstations
from schemas import CheckIn

_SERVICE = "service"
_SERVICE_AGENT = select(agents.c.agent).where(
    agents.c.workstation == bindparam("its_name"), agents.c.agent == _SERVICE
)
_MACHINES_KEPT = 7 * 86400  # seconds
_MACHINE_KEY = ("workstation", "agent", "machine", "boot", "standby", "first_offset")
_DELETE_MACHINES = delete(machines).where(
    machines.c.workstation == bindparam("its_name"), machines.c.at < bindparam("before")
)
_LAST_TIMES = ("queue_new_at", "woke_at")
_UPDATE_LAST_TIME = {
    name: update(agents)
    .where(
        agents.c.workstation == bindparam("its_workstation"),
        agents.c.agent == bindparam("its_agent"),
    )
    .values({name: bindparam("its_at")})
    for name in _LAST_TIMES
}
_DELETE_GROUPS = delete(memberships).where(memberships.c.workstation == bindparam("its_name"))


def write(connection: Connection, check_ins: Sequence[tuple[CheckIn, int]]) -> None:
    """Write check-ins, each with its offset, in the order of the stream.

    Of a machine that receives nothing, since another one has its name, only the machine is written.
    """
    _write_machines(connection, check_ins)
    package_rows.write(connection, check_ins)
    check_ins = [(check_in, offset) for check_in, offset in check_ins if not check_in.standby]
    facts = [(check_in, offset, check_in.facts.model_dump()) for check_in, offset in check_ins]
    if not facts:
        return
    speakers = _speakers(connection, check_ins)
    seen = [
        {
            "name": check_in.workstation,
            "first_seen": check_in.at.timestamp(),
            "seen_at": check_in.at.timestamp(),
            "seen_offset": offset,
            **known,
        }
        for check_in, offset, known in facts
    ]
    changed = ("seen_at", "seen_offset", *facts[0][2])
    # In the order of the stream: a user's agent can come before the service's first check-in.
    for speaks, group in groupby(zip(speakers, seen, strict=True), key=itemgetter(0)):
        put(connection, workstations, [row for _, row in group], changed if speaks else ())
    groups = {
        check_in.workstation: check_in.groups
        for speaks, (check_in, _) in zip(speakers, check_ins, strict=True)
        if speaks
    }
    if groups:
        connection.execute(_DELETE_GROUPS, [{"its_name": name} for name in groups])
    members = [{"group": group, "workstation": name} for name in groups for group in groups[name]]
    put(connection, memberships, members)
    rows = [_agent(check_in) for check_in, _ in check_ins]
    columns = tuple(name for name in rows[0] if name not in {"workstation", "agent"})
    put(connection, agents, rows, columns)
    # Only the process that made the queue, or that saw the machine wake, knows when.
    for name, statement in _UPDATE_LAST_TIME.items():
        told = [(check_in, at) for check_in, _ in check_ins if (at := getattr(check_in, name))]
        if told:
            connection.execute(statement, [_last_time(check_in, at) for check_in, at in told])


def _last_time(check_in: CheckIn, at: datetime) -> dict[str, Any]:
    agent = {"its_workstation": check_in.workstation, "its_agent": check_in.agent}
    return {**agent, "its_at": at.timestamp()}


def _speakers(connection: Connection, check_ins: Sequence[tuple[CheckIn, int]]) -> list[bool]:
    """Return which check-ins tell of the whole workstation: its groups, platform and last sign.

    Those of the service agent; until it has ever checked in, those of a user's agent, too.
    """
    speakers = []
    with_service: set[str] = set()
    for check_in, _ in check_ins:
        name = check_in.workstation
        if check_in.agent == _SERVICE:
            with_service.add(name)
        is_alone = (
            name not in with_service
            and connection.scalar(_SERVICE_AGENT, {"its_name": name}) is None
        )
        speakers.append(check_in.agent == _SERVICE or is_alone)
    return speakers


def _write_machines(connection: Connection, check_ins: Sequence[tuple[CheckIn, int]]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "workstation": check_in.workstation,
            "agent": check_in.agent,
            "machine": check_in.machine.id,
            "boot": check_in.machine.boot,
            "standby": check_in.standby,
            "host": check_in.machine.host,
            "address": check_in.machine.address,
            "first_offset": offset,
            "last_offset": offset,
            "at": int(check_in.at.timestamp()),
            "interval": int(check_in.interval.total_seconds()),
            "up": check_in.up,
        }
        for check_in, offset in check_ins
        if check_in.machine is not None
    ]
    if not rows:
        return
    put(connection, machines, rows, tuple(name for name in rows[0] if name not in _MACHINE_KEY))
    newest = {row["workstation"]: row["at"] for row in rows}
    connection.execute(
        _DELETE_MACHINES,
        [{"its_name": name, "before": at - _MACHINES_KEPT} for name, at in newest.items()],
    )


def _policy(check_in: CheckIn) -> str:
    """Return the fields that determine an agent's decisions, as JSON."""
    return check_in.model_dump_json(include=set(POLICY), exclude_none=True)


def _agent(check_in: CheckIn) -> dict[str, Any]:
    pause = check_in.pause
    return {
        "workstation": check_in.workstation,
        "agent": check_in.agent,
        "up": check_in.up,
        "paused": pause is not None,
        "paused_at": pause.created_at.timestamp() if pause else None,
        "paused_by": pause.sender if pause else "",
        "pause_reason": pause.reason if pause else "",
        "at": check_in.at.timestamp(),
        "interval": check_in.interval.total_seconds(),
        "program": check_in.program,
        "policy": _policy(check_in),
        "waiting": check_in.waiting,
        "running": check_in.running,
        "signed_only": check_in.signed_only,
        "sealing_key": check_in.sealing_key or "",
        "revoked_at": None,
    }
