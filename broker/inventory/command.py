"""`pcm packages`: count the versions of packages over the fleet, or list where one is."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import history_engine, name
from broker.cli.terminal import Cell, Column, print_table
from broker.cli.time_formats import age, iso, local
from broker.history.history import query_history
from schemas.text import did_you_mean, nearest

if TYPE_CHECKING:
    from broker.history.queries.packages import PackageCount, PackageRow

_COUNT_COLUMNS = (
    Column("package", least=12),
    Column("version"),
    Column("installed", right=True),
    Column("absent", right=True),
)
_COLUMNS = (
    Column("workstation", least=12),
    Column("version"),
    Column("installed"),
    Column("detected", rank=2),
    Column("command", rank=1),
    Column("state", rank=1),
    Column("ran at", rank=2),
    Column("agent", rank=3, least=7),
)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    packages = commands.add_parser(
        "packages",
        description="Counts the workstations on which each version of a package is installed, by"
        " the agents' last reports: the packages that they ran, and what detection says now. ABSENT"
        " counts where an agent ran the package, and it is not, or no longer, there.",
    )
    packages.add_argument(
        "--package", metavar="N", type=name, help="list the workstations of this package"
    )
    packages.add_argument("--installed", action="store_true", help="only where it is installed")
    packages.add_argument("--json", action="store_true", help="print JSON")
    packages.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    wanted, installed = arguments.package, arguments.installed
    with history_engine() as engine, query_history(engine) as history:
        packages, now = history.packages, history.jobs.now
        if wanted is not None and wanted not in (known := packages.names()):
            near = did_you_mean(nearest(wanted, known))
            raise CommandError(f"--package: no workstation has reported {wanted}{near}")
        rows = packages.rows(wanted, installed=installed) if wanted else []
        counts = [] if wanted else packages.counts(installed=installed)
    if arguments.json:
        fields = list(map(_fields, rows)) if wanted else list(map(vars, counts))
        print(json.dumps(fields, indent=2))
    elif wanted and rows:
        print_table(_COLUMNS, [_cells(row, now) for row in rows])
    elif counts:
        print_table(_COUNT_COLUMNS, map(_count_cells, counts))
    else:
        print("no packages")
    return DONE


def _count_cells(count: "PackageCount") -> list[str]:
    return [count.name, count.version, f"{count.installed:,}", f"{count.absent:,}"]


def _cells(row: "PackageRow", now: float) -> list[object]:
    detected = "" if row.present is None else "yes" if row.present else "no"
    return [
        row.workstation,
        row.version,
        "yes" if row.installed else "no",
        detected,
        row.command,
        row.state.replace("_", " "),
        Cell(local(row.ran_at), age(row.ran_at, now)),
        row.agent,
    ]


def _fields(row: "PackageRow") -> dict[str, object]:
    return vars(row) | {"ran_at": iso(row.ran_at), "checked_at": iso(row.checked_at)}
