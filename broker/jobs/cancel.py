"""`pcm cancel`: a job is withdrawn, everywhere or on some workstations."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser, Wrong
from broker.cli.session import known_history, name, with_dispatcher

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    cancel = commands.add_parser(
        "cancel",
        help="withdraw a job",
        description="Withdraws a job: where it has not started it never does, where it runs it"
        " is ended.",
    )
    cancel.add_argument("job", metavar="JOB", type=name, help="its id, or the beginning")
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
    job = _of_history(arguments)

    async def work(dispatcher: "Dispatcher") -> int:
        await dispatcher.cancel(job, arguments.reason, arguments.workstation)
        if arguments.json:
            where = {"workstations": arguments.workstation} if arguments.workstation else {}
            print(json.dumps({"job": job, "cancelled": True, **where}))
        else:
            where_text = " on " + ", ".join(arguments.workstation) if arguments.workstation else ""
            print(f"{job}: cancelled{where_text}; pcm watch {job} tells where it stopped")
        return DONE

    return with_dispatcher(work)


def _of_history(arguments: argparse.Namespace) -> str:
    """Return the whole id of the job.

    Raises:
        Wrong: there is nothing to cancel, as far as the history goes.
    """
    from broker.history.queries import UnknownId, accounts
    from broker.jobs.cancellable import NotCancellable, check_cancellable

    job: str = arguments.job
    with known_history() as engine:
        if engine is None:
            return job
        try:
            with accounts(engine) as queries:
                return check_cancellable(queries, job, arguments.workstation)
        except NotCancellable as error:
            raise Wrong(str(error)) from error
        except UnknownId as error:
            if error.several:
                raise Wrong(str(error)) from error
            return job  # the stream may have it
