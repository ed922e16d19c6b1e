"""Project what check-ins say about packages: what is installed, and what is being fetched."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, select

from broker.history.projection.upserts import put
from broker.history.schema import contents, packages
from schemas import CheckIn

_Agent = tuple[str, str]  # a workstation, and the agent's name


def write(connection: Connection, check_ins: Sequence[tuple[CheckIn, int]]) -> None:
    """Write the last inventory and the last downloads of each agent; they replace all before."""
    inventories: dict[_Agent, CheckIn] = {}
    last: dict[_Agent, CheckIn] = {}
    for check_in, _ in check_ins:
        if check_in.standby:
            continue
        agent = (check_in.workstation, check_in.agent)
        last[agent] = check_in
        if check_in.packages is not None:
            inventories[agent] = check_in
    if inventories:
        _replace(connection, packages, inventories, _installed(inventories.values()))
    # Nearly all check-ins have no downloads: look first which agents had some.
    known = select(contents.c.workstation, contents.c.agent).distinct()
    had = {(workstation, agent) for workstation, agent in connection.execute(known)}
    changed = {agent for agent, check_in in last.items() if check_in.contents or agent in had}
    if changed:
        rows = _contents(last[agent] for agent in sorted(changed))
        _replace(connection, contents, changed, rows)


def _replace(
    connection: Connection, table: Table, agents: Iterable[_Agent], rows: list[dict[str, Any]]
) -> None:
    of_agent = delete(table).where(
        table.c.workstation == bindparam("its_name"), table.c.agent == bindparam("its_agent")
    )
    connection.execute(of_agent, [{"its_name": name, "its_agent": agent} for name, agent in agents])
    put(connection, table, rows)


def _installed(check_ins: Iterable[CheckIn]) -> list[dict[str, Any]]:
    return [
        {
            "workstation": check_in.workstation,
            "agent": check_in.agent,
            "name": package.name,
            "version": package.version,
            "manifest": package.manifest,
            "command": package.command,
            "state": str(package.state),
            "installed": package.installed,
            "present": package.present,
            "ran_at": package.ran_at.timestamp(),
            "checked_at": package.checked_at.timestamp() if package.checked_at else None,
        }
        for check_in in check_ins
        for package in {one.name: one for one in check_in.packages or ()}.values()
    ]


def _contents(check_ins: Iterable[CheckIn]) -> list[dict[str, Any]]:
    return [
        {
            "workstation": check_in.workstation,
            "agent": check_in.agent,
            "manifest": content.package.manifest,
            "name": content.package.name,
            "version": content.package.version,
            "state": str(content.state),
            "received": content.received,
            "size": content.size,
            "rate": content.rate,
            "reason": content.reason,
            "at": check_in.at.timestamp(),
        }
        for check_in in check_ins
        for content in {one.package.manifest: one for one in check_in.contents or ()}.values()
    ]
