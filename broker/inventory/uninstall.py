"""`pcm uninstall`: send a package's command `uninstall` to the workstations that have it."""

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ValidationError

from broker.cli.command_line import DONE, CommandError, Parser, UsageError, argument_errors
from broker.cli.hints import print_offer_hint
from broker.cli.options import as_option
from broker.cli.session import history_engine, with_dispatcher
from broker.cli.targets import read_workstations
from broker.cli.terminal import printable
from broker.history.history import query_history
from broker.inventory.uninstall_jobs import NotUninstallable, uninstall_jobs
from broker.packages.resolve import JobFields
from broker.packages.session import load_keyring, load_points, package_errors
from broker.watch import command as watch
from schemas import PackageSpec, explain
from schemas.text import counted, listed
from schemas.times import parse_moment

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher
    from schemas import Job

_SHOWN = 20
_TIMES: Final[tuple[Literal["offer_at", "mandatory_at", "expires_at"], ...]] = (
    "offer_at",
    "mandatory_at",
    "expires_at",
)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    uninstall = commands.add_parser(
        "uninstall",
        description="Sends a package's command uninstall to the workstations that have the package,"
        " by the history: a job for each version. Each workstation checks again that it has that"
        " version. A version must still be on a distribution point. A time T is as for pcm send.",
        parents=[watch.options()],
    )
    add = uninstall.add_argument
    add("spec", metavar="NAME", type=_spec, help="the package; or some versions, such as 'NAME<2'")
    add("--to", metavar="W", action="append", help="only on this workstation or group")
    add("--offer-at", metavar="T", help="invisible before (default: offered immediately)")
    add("--mandatory-at", metavar="T", help="runs then without consent (default: optional)")
    add("--expires-at", metavar="T", help="never starts after")
    add("--respects-windows", action="store_true", help="starts in maintenance windows only")
    add("--comment", metavar="TEXT", default="", help="reason for the job, shown to users")
    add("--dry-run", action="store_true", help="send nothing; show where it is installed")
    add("--wait", action="store_true", help="watch each job, as pcm watch does")
    uninstall.set_defaults(run=_run)


def _spec(text: str) -> PackageSpec:
    with argument_errors():
        try:
            return PackageSpec.parse(text)
        except ValidationError as error:
            raise ValueError(explain(error)) from error


def _run(arguments: argparse.Namespace) -> int:
    watch.check_options(arguments)
    if arguments.dry_run and arguments.wait:
        raise UsageError("--wait: a dry run sends nothing; leave out one of the two")
    jobs = _jobs(arguments)
    for job in jobs:
        names = [str(target.name) for target in job.targets]
        where = f"{counted(len(names), 'workstation')}: {listed(names, _SHOWN)}"
        print(printable(f"pcm: {job.title}: {where}"), file=sys.stderr)
    if arguments.dry_run:
        print("pcm: nothing was sent", file=sys.stderr)
        return DONE

    async def work(dispatcher: "Dispatcher") -> int:
        for job in jobs:
            await dispatcher.dispatch(job)
            print(json.dumps({"job": job.id}) if arguments.json else job.id, flush=True)
        print_offer_hint(jobs, "--mandatory-at T")
        status = DONE
        for job in jobs if arguments.wait else ():
            limit = arguments.give_up_after
            watched = await watch.watch(dispatcher, job.id, as_json=arguments.json, limit=limit)
            status = max(status, watched)
        return status

    return with_dispatcher(work)


def _jobs(arguments: argparse.Namespace) -> "list[Job]":
    names = read_workstations("--to", arguments.to) if arguments.to else None
    fields: JobFields = {
        "comment": arguments.comment,
        "respects_windows": arguments.respects_windows,
        **_times(arguments),
    }
    points, keyring = load_points(), load_keyring()
    with history_engine() as engine, query_history(engine) as history:
        try:
            with package_errors():
                return uninstall_jobs(
                    history.packages, arguments.spec, points, keyring, workstations=names, **fields
                )
        except NotUninstallable as error:
            raise CommandError(str(error)) from error
        except UsageError as error:
            raise UsageError(as_option(str(error))) from error


def _times(arguments: argparse.Namespace) -> JobFields:
    now = datetime.now(UTC)
    times: JobFields = {"created_at": now}
    for name in _TIMES:
        text = getattr(arguments, name)
        if text is not None:
            try:
                times[name] = parse_moment(text, now)
            except (ValueError, OverflowError) as error:
                raise UsageError(f"--{name.replace('_', '-')}: {error}") from error
    return times
