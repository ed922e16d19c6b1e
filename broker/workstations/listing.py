"""`pcm workstations` and `pcm groups`: list workstations as they last checked in."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, CommandError, Parser, UsageError
from broker.cli.session import history_engine, name
from broker.cli.targets import nearest_name, read_conditions
from broker.cli.terminal import Cell, Column, print_table, printable
from broker.cli.time_formats import age, iso, local
from broker.history.history import query_history
from broker.history.queries.workstations import query_fleet
from schemas.reports.check_in import is_automatic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.queries.workstations import AgentRow, Fleet, WorkstationRow

_MAX_ROWS = 100  # on a terminal
_STATUSES = ("up", "paused", "stopped", "missing", "revoked")
_COLUMNS = (
    Column("workstation", least=16),
    Column("status"),
    Column("last seen"),
    Column("agents", rank=1, least=12),
    Column("groups", rank=2, least=8),
    Column("platform", rank=5, least=12),
    Column("program", rank=4, least=7),
    Column("waiting", rank=3, right=True),
    Column("running", rank=3, right=True),
)
_GROUP_COLUMNS = (
    Column("group", least=16),
    Column("workstations", right=True),
    Column("automatic"),
)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    workstations = commands.add_parser(
        "workstations",
        description="Lists workstations as their agents last checked in. The status is that of"
        " the service agent: up; paused (starts no job until pcm resume); stopped (reported at"
        " its exit); missing (did not check in on time); revoked (its login was deleted). WAITING"
        " and RUNNING count the workstation's jobs that have not started, or have started and not"
        " ended. Automatic groups, such as os-linux, are listed only with --json. If several"
        " machines have one name, they are listed below the table: the first receives the jobs, the"
        " others nothing.",
    )
    add = workstations.add_argument
    add("name", metavar="NAME", nargs="*", type=name, help="only these (default: all)")
    add("--group", metavar="G", type=name, help="only members of this group")
    add(
        "--package",
        metavar="P",
        help="only where this holds: installed:PACKAGE, missing:PACKAGE or installed:PACKAGE<2.1",
    )
    add("--status", choices=_STATUSES, help="only workstations with this status")
    add("--all", action="store_true", help=f"show more than {_MAX_ROWS} rows on a terminal, too")
    add("--json", action="store_true", help="print JSON")
    workstations.set_defaults(run=_workstations)
    groups = commands.add_parser(
        "groups",
        description="Lists groups, or the members of a group. Automatic groups, such as os-linux,"
        " are derived from the platform.",
    )
    groups.add_argument("group", metavar="GROUP", nargs="?", type=name, help="list its members")
    groups.add_argument("--json", action="store_true", help="print JSON")
    groups.set_defaults(run=_groups)


def _workstations(arguments: argparse.Namespace) -> int:
    conditions = read_conditions("--package", [arguments.package] if arguments.package else ())
    if arguments.package and not conditions:
        raise UsageError(f"--package: {arguments.package}: write installed:NAME or missing:NAME")
    with history_engine() as engine, query_history(engine) as history:
        known = history.fleet
        now = known.now
        rows = _filter(known, arguments)
        for condition in conditions:
            names = set(history.packages.matching(condition))
            rows = [row for row in rows if row.name in names]
    if arguments.json:
        print(json.dumps([_fields(row, now) for row in rows], indent=2))
    elif not rows:
        print("no workstations")
    else:
        _print(rows, now, show_all=arguments.all or not sys.stdout.isatty())
    return DONE


def _filter(known: "Fleet", arguments: argparse.Namespace) -> "list[WorkstationRow]":
    rows = known.workstations(arguments.name or None, arguments.group)
    if not rows and arguments.group and arguments.group not in (groups := known.groups()):
        near = nearest_name(arguments.group, groups)
        raise CommandError(f"--group: no workstation is in {arguments.group}{near}")
    names = {row.name for row in rows}
    if unknown := [name for name in arguments.name if name not in names]:
        where = f" in {arguments.group}" if arguments.group else ""
        near = nearest_name(unknown[0], known.all_names()) if len(unknown) == 1 else ""
        raise CommandError(f"{', '.join(unknown)}: no such workstation has checked in{where}{near}")
    return [row for row in rows if arguments.status in (None, row.status(known.now))]


def _print(rows: "Sequence[WorkstationRow]", now: float, *, show_all: bool) -> None:
    shown = rows if show_all else rows[:_MAX_ROWS]
    print_table(_COLUMNS, [_cells(row, now) for row in shown])
    if hidden := len(rows) - len(shown):
        print(f"... and {hidden} more; --all shows them, --status and --group filter")
    for row in shown:
        _print_machines(row, now)


def _print_machines(row: "WorkstationRow", now: float) -> None:
    """Print the machines of a name, if there are several."""
    from broker.history.queries.machines import duplicated

    for former in row.former_names:
        print(f"{row.name}: was named {former}; pcm forget {former} deletes the former queues")
    for agent in duplicated(row.machines):
        print(f"{row.name}: several machines have this name; give each its own PCM_WORKSTATION:")
        for machine in row.machines:
            if machine.agent == agent:
                receives = "receives nothing" if machine.standby else "receives jobs"
                seen = age(machine.at, now)
                print(f"  {printable(str(machine))}: {agent} {receives}, seen {seen}")


def _cells(row: "WorkstationRow", now: float) -> list[object]:
    groups = [group for group in row.groups if not is_automatic(group)]
    platform = "/".join(part for part in (row.os, row.arch, row.release) if part)
    return [
        row.name,
        row.status(now),
        Cell(local(row.seen_at), age(row.seen_at, now)),
        ", ".join(_agent(agent, now) for agent in row.agents) or "-",
        ", ".join(groups) or "-",
        platform or "-",
        _program(row) or "-",
        str(row.waiting),
        str(row.running),
    ]


def _agent(agent: "AgentRow", now: float) -> str:
    status = agent.status(now)
    name = agent.agent.removeprefix("interactive-")
    return name if status == "up" or agent.agent == "service" else f"{name} ({status})"


def _program(row: "WorkstationRow") -> str:
    agents = (row.service,) if row.service else row.agents
    return next((agent.program for agent in agents if agent), "")


def _fields(row: "WorkstationRow", now: float) -> dict[str, Any]:
    return {
        "workstation": row.name,
        "status": row.status(now),
        "first_seen": iso(row.first_seen),
        "last_seen": iso(row.seen_at),
        "agents": [
            {
                "agent": agent.agent,
                "status": agent.status(now),
                "checked_in": iso(agent.at),
                "program": agent.program,
                "windows": agent.windows,
                "signed_only": agent.signed_only,
                "waiting": agent.waiting,
                "running": agent.running,
                "pause": {
                    "since": iso(agent.paused_at),
                    "by": agent.paused_by,
                    "reason": agent.pause_reason,
                }
                if agent.paused_at is not None
                else None,
            }
            for agent in row.agents
        ],
        "machines": [
            {
                "agent": machine.agent,
                "machine": machine.machine,
                "boot": machine.boot,
                "host": machine.host,
                "address": machine.address,
                "standby": machine.standby,
                "checked_in": iso(machine.at),
            }
            for machine in row.machines
        ],
        "former_names": row.former_names,
        "groups": row.groups,
        "os": row.os,
        "arch": row.arch,
        "release": row.release,
        "python": row.python,
        "memory": row.memory,
        "program": _program(row),
        "waiting": row.waiting,
        "running": row.running,
    }


def _groups(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_fleet(engine) as known:
        groups = known.groups()
    if arguments.group is not None:
        return _members(groups, arguments.group, as_json=arguments.json)
    rows = [(group, len(groups[group]), _is_automatic(group)) for group in sorted(groups)]
    if arguments.json:
        names = [column.name for column in _GROUP_COLUMNS]
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    elif not rows:
        print("no groups")
    else:
        cells = [[group, count, "yes" if automatic else ""] for group, count, automatic in rows]
        print_table(_GROUP_COLUMNS, cells)
    return DONE


def _members(groups: dict[str, list[str]], group: str, *, as_json: bool) -> int:
    if group not in groups:
        raise CommandError(f"{group}: no workstation is in this group{nearest_name(group, groups)}")
    members = groups[group]
    if as_json:
        fields = {"group": group, "automatic": _is_automatic(group), "workstations": members}
        print(json.dumps(fields, indent=2))
    else:
        print("\n".join(members))
    return DONE


def _is_automatic(group: str) -> bool:
    return is_automatic(group)
