"""`pcm why`: explain a job's state on a workstation, and what happens there next."""

import argparse
import json
import sys

from broker.cli.command_line import DONE, Parser
from broker.cli.session import name
from broker.cli.terminal import printable
from broker.cli.time_formats import iso
from broker.results.query_session import query_session, unknown_workstation_hint
from broker.results.why.why import NOT_ADDRESSED, why


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    why = commands.add_parser(
        "why",
        description="Explains in two sentences a job's state on a workstation, and what happens"
        " there next. Times are computed with the settings that the workstation's agents reported"
        " when they checked in.",
    )
    why.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    why.add_argument("workstation", metavar="WORKSTATION", type=name, help="the workstation")
    why.add_argument("--json", action="store_true", help="print JSON: state, why, next, next_at")
    why.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with query_session() as history:
        job = history.jobs.find(arguments.job).id
        explained = why(history, job, arguments.workstation)
        near = unknown_workstation_hint(history, arguments.workstation)
    if arguments.json:
        fields = {
            "job": job,
            "workstation": arguments.workstation,
            "state": explained.state,
            "why": explained.why,
            "next": explained.next,
            "next_at": iso(explained.next_at),
        }
        print(json.dumps(fields, indent=2))
    else:
        print(printable(explained.why))
        print(printable(explained.next))
        if near and explained.state == NOT_ADDRESSED:
            print(f"pcm: {near.removeprefix('; ')}", file=sys.stderr)
    return DONE
