"""`pcm why`: why a job is where it is on a workstation, and what happens there next."""

import argparse
import json

from broker.cli.command_line import DONE, Parser
from broker.cli.session import name
from broker.cli.terminal import printable
from broker.cli.time_formats import iso
from broker.results.query_session import looking


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
    from broker.results.why.why import why

    with looking() as history:
        job = history.accounts.find(arguments.job).id
        found = why(history, job, arguments.workstation)
    if arguments.json:
        told = {"job": job, "workstation": arguments.workstation, "state": found.state}
        told |= {"why": found.why, "next": found.next}
        print(json.dumps({**told, "next_at": iso(found.next_at)}, indent=2))
    else:
        print(printable(found.why))
        print(printable(found.next))
    return DONE
