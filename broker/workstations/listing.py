"""`pcm workstations` and `pcm groups`: who is there, as agents last said."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import history, name
from broker.cli.terminal import Cell, Column, print_table
from broker.cli.time_formats import age, iso, local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.workstations import AgentRow, Fleet, WorkstationRow

_MOST = 100  # rows on a terminal
_STATUSES = ("up", "paused", "stopped", "missing")
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
        help="who is there",
        description="Lists workstations as their agents last checked in. The status is that of"
        " the service agent: up; paused (starts nothing until pcm resume); stopped (said so at"
        " its end); missing (did not check in when it was due). WAITING and RUNNING count the"
        " jobs that are for it and have not started, or not ended. Groups that follow from the"
        " platform, such as os-linux, are left out here, but not from --json.",
    )
    add = workstations.add_argument
    add("name", metavar="NAME", nargs="*", type=name, help="only these (default: all)")
    add("--group", metavar="G", type=name, help="only members of a group")
    add("--status", choices=_STATUSES, help="only those of a status")
    add("--all", action="store_true", help=f"on a terminal, too, more than {_MOST} rows")
    add("--json", action="store_true", help="print JSON")
    workstations.set_defaults(run=_workstations)
    groups = commands.add_parser(
        "groups",
        help="groups, or the members of one",
        description="Lists the groups that workstations are in, or the members of one. Groups"
        " marked automatic follow from what a workstation is, such as os-linux.",
    )
    groups.add_argument("group", metavar="GROUP", nargs="?", type=name, help="whose members")
    groups.add_argument("--json", action="store_true", help="print JSON")
    groups.set_defaults(run=_groups)


def _workstations(arguments: argparse.Namespace) -> int:
    from broker.history.workstations import fleet

    with history() as engine, fleet(engine) as known:
        now = known.now
        rows = _chosen(known, arguments)
    if arguments.json:
        print(json.dumps([_row(row, now) for row in rows], indent=2))
    elif not rows:
        print("no workstations")
    else:
        _print(rows, now, everything=arguments.all or not sys.stdout.isatty())
    return DONE


def _chosen(known: "Fleet", arguments: argparse.Namespace) -> "list[WorkstationRow]":
    rows = known.workstations(arguments.name or None, arguments.group)
    if not rows and arguments.group and arguments.group not in known.groups():
        raise CommandError(f"--group: nobody is in {arguments.group}")
    found = {row.name for row in rows}
    if lost := [name for name in arguments.name if name not in found]:
        where = f" in {arguments.group}" if arguments.group else ""
        raise CommandError(f"{', '.join(lost)}: no such workstation has checked in{where}")
    return [row for row in rows if arguments.status in (None, row.status(known.now))]


def _print(rows: "Sequence[WorkstationRow]", now: float, *, everything: bool) -> None:
    shown = rows if everything else rows[:_MOST]
    print_table(_COLUMNS, [_cells(row, now) for row in shown])
    if left := len(rows) - len(shown):
        print(f"... and {left} more; --all shows them, --status and --group choose")


def _cells(row: "WorkstationRow", now: float) -> list[object]:
    from schemas.check_in import is_automatic

    given = [group for group in row.groups if not is_automatic(group)]
    platform = "/".join(part for part in (row.os, row.arch, row.release) if part)
    return [
        row.name,
        row.status(now),
        Cell(local(row.seen_at), age(row.seen_at, now)),
        ", ".join(_agent(agent, now) for agent in row.agents) or "-",
        ", ".join(given) or "-",
        platform or "-",
        _program(row) or "-",
        str(row.waiting),
        str(row.running),
    ]


def _agent(agent: "AgentRow", now: float) -> str:
    status = agent.status(now)
    who = agent.agent.removeprefix("interactive-")
    return who if status == "up" or agent.agent == "service" else f"{who} ({status})"


def _program(row: "WorkstationRow") -> str:
    agents = (row.service,) if row.service else row.agents
    return next((agent.program for agent in agents if agent), "")


def _row(row: "WorkstationRow", now: float) -> dict[str, Any]:
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
    from broker.history.workstations import fleet

    with history() as engine, fleet(engine) as known:
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
        raise CommandError(f"{group}: nobody is in this group")
    members = groups[group]
    if as_json:
        row = {"group": group, "automatic": _is_automatic(group), "workstations": members}
        print(json.dumps(row, indent=2))
    else:
        print("\n".join(members))
    return DONE


def _is_automatic(group: str) -> bool:
    from schemas.check_in import is_automatic

    return is_automatic(group)
