"""`pcm cancel`: a job is withdrawn, everywhere or on some workstations."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.command_line import DONE, Parser
from broker.commands.session import name, with_dispatcher

if TYPE_CHECKING:
    from broker.dispatching.dispatcher import Dispatcher


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    cancel = commands.add_parser(
        "cancel",
        help="withdraw a job",
        description="Withdraws a job: where it has not started it never does, where it runs it"
        " is ended.",
    )
    cancel.add_argument("job", metavar="JOB", type=name, help="the job's id")
    cancel.add_argument(
        "--workstation",
        metavar="W",
        action="append",
        type=name,
        default=[],
        help="only there; again for more (default: wherever it went)",
    )
    cancel.add_argument("--reason", metavar="TEXT", default="", help="told to the workstations")
    cancel.add_argument("--json", action="store_true", help="print JSON")
    cancel.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    async def work(dispatcher: "Dispatcher") -> int:
        job = arguments.job
        await dispatcher.cancel(job, arguments.reason, arguments.workstation)
        if arguments.json:
            where = {"workstations": arguments.workstation} if arguments.workstation else {}
            print(json.dumps({"job": job, "cancelled": True, **where}))
        else:
            where_text = " on " + ", ".join(arguments.workstation) if arguments.workstation else ""
            print(f"{job}: cancelled{where_text}; pcm watch {job} tells where it stopped")
        return DONE

    return with_dispatcher(work)
