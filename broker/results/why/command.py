"""`pcm why`: why a job is where it is on a workstation, and what happens there next."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser
from broker.cli.session import name
from broker.cli.terminal import printable
from broker.cli.time_formats import iso
from broker.results.query_session import looking

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.history.queries import Accounts
    from broker.results.why.circumstances import Circumstances


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    why = commands.add_parser(
        "why",
        help="why a job is where it is on a workstation",
        description="Says in two sentences why a job is where it is on a workstation, and what"
        " happens there next. Times go by the settings that the workstation's agents told when"
        " they checked in.",
    )
    why.add_argument("job", metavar="JOB", type=name, help="the job's id; it may be cut short")
    why.add_argument("workstation", metavar="WORKSTATION", type=name, help="its name")
    why.add_argument("--json", action="store_true", help="print JSON: state, why, next, next_at")
    why.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from broker.results.why.why import explain

    with looking() as (accounts, engine):
        known = _circumstances(accounts, engine, arguments.job, arguments.workstation)
    found = explain(known)
    if arguments.json:
        told = {"job": known.job.id, "workstation": known.workstation, "state": found.state}
        told |= {"why": found.why, "next": found.next}
        print(json.dumps({**told, "next_at": iso(found.next_at)}, indent=2))
    else:
        print(printable(found.why))
        print(printable(found.next))
    return DONE


def _circumstances(
    accounts: "Accounts", engine: "Engine", job: str, workstation: str
) -> "Circumstances":
    from broker.history.workstations import fleet
    from broker.results.why.circumstances import Circumstances
    from schemas import Cancellation

    row = accounts.find(job)
    with fleet(engine, accounts.now) as there:
        station = next(iter(there.workstations([workstation])), None)
    return Circumstances(
        job=row,
        body=accounts.body(row.id),
        workstation=workstation,
        pair=accounts.pair(row.id, workstation),
        station=station,
        events=accounts.events(row.id, workstation),
        cancellations=[
            record
            for record in accounts.records("cancellation", row.id)
            if isinstance(record, Cancellation)
        ],
        now=accounts.now,
    )
