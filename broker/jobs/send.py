"""`pcm send`: send a job given by options, or the jobs of a file."""

import argparse
import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from broker.amqp.connection import Unreachable, Unroutable
from broker.amqp.topology import routing_keys
from broker.cli.command_line import DONE, FAILED, Parser, UsageError
from broker.cli.hints import print_offer_hint
from broker.cli.options import as_option
from broker.cli.session import with_dispatcher
from broker.cli.targets import (
    print_suggestions,
    read_conditions,
    read_targets,
    suggest_for_unroutable,
)
from broker.cli.terminal import printable
from broker.jobs import saved, secrets
from broker.jobs.mandatory_time import check_not_past
from broker.packages import options as package_options
from broker.rollouts import options as waves
from broker.watch import command as watch
from schemas import Command, Job, everyone, explain
from schemas.times import parse_moment

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher
    from schemas import PackageReference, SignedJob, Target

# The options that --file allows.
_WITH_FILE = {"command", "file", "wait", "dry_run", "json", "give_up_after", "run", "takes_command"}
_WITH_FILE |= {"secret", "save", *waves.OPTIONS}


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    send = commands.add_parser(
        "send",
        description="Sends a command as a job, or all jobs of a file, and prints their ids, one a"
        " line. The command is a program of the workstations, a script that is sent along, or one"
        " of a package, whose files the workstations fetch. A time T is ISO 8601 with a zone, +10m,"
        " now, or 'YYYY-MM-DDTHH:MM local' for each"
        " workstation's clock. A duration D is such as 30s, 5m, 1h30m.",
        usage="pcm send [OPTION]... -- COMMAND [ARG]...\n"
        "       pcm send --script FILE [OPTION]... [-- ARG...]\n"
        "       pcm send --package NAME[@VERSION|@CHANNEL] [--command C] [OPTION]...\n"
        "       pcm send --file FILE [OPTION]...",
        parents=[watch.options()],
    )
    add_options(send)
    add = send.add_argument
    add("--offer-at", metavar="T", help="invisible before (default: offered immediately)")
    add("--mandatory-at", metavar="T", help="runs then without consent (default: optional)")
    add("--expires-at", metavar="T", help="never starts after")
    add("--file", metavar="FILE", help="jobs as JSON, YAML or TOML; - for stdin")
    add("--wait", action="store_true", help="watch each job, as pcm watch does")
    secrets.add_option(send)
    saved.add_option(send)
    add("--dry-run", action="store_true", help="send nothing; show whom it would reach, and when")
    waves.add_options(send)
    send.set_defaults(run=_send, takes_command=True)


def add_options(parser: Parser) -> None:
    """Add the options for a job's command and targets, without its times."""
    add = parser.add_argument
    add(
        "--to",
        action="append",
        metavar="TARGET",
        help="all, group:NAME, workstation:NAME or a workstation's NAME; a list such as A,B, a file"
        " of them as @FILE, or a glob such as 'lab-*' for those in the history; or, alone,"
        " installed:PACKAGE<2.1 or missing:PACKAGE; repeat for more",
    )
    package_options.add_options(parser)
    add("--not-to", action="append", metavar="TARGET", help="excluded from --to; repeat for more")
    add("--background", action="store_true", help="run by the service agent; not shown to users")
    add("--timeout", metavar="D", help="limit of the command's run time (default: 1h)")
    add("--success-exit", metavar="N,N", help="exit codes for success (default: 0)")
    add("--restart-exit", metavar="N,N", help="for success with restart (default: none)")
    add("--user-input-required", action="store_true", help="never run without a user")
    add("--user-may-stop", action="store_true", help="a user may stop it while it runs")
    add("--survives-agent", action="store_true", help="continues when its agent ends or restarts")
    add("--leaves-processes", action="store_true", help="what it leaves running is never ended")
    add("--rerun-interrupted", action="store_true", help="may start again after a crash")
    add("--respects-windows", action="store_true", help="starts in maintenance windows only")
    add("--supersedes", metavar="KEY", help="replaces older jobs of this key not yet started")
    add("--platform", action="append", metavar="P", help="only on, such as linux or linux/x86_64")
    add("--env", action="append", metavar="K=V", help="environment variable; repeat for more")
    add("--cwd", metavar="DIR", help="working directory (default: the user's home)")
    add("--run-as", metavar="USER", help="user who runs a background command (default: root)")
    add("--shell", action="store_true", help="the command is a script for /bin/sh -c")
    add("--name", metavar="TEXT", help="name for people (default: the command)")
    add("--comment", metavar="TEXT", help="reason for the job, shown to users")
    add("--max-postponements", metavar="N", help="how often a user may postpone it")
    add("--min-interval", metavar="D", help="shortest postponement")


def _send(arguments: argparse.Namespace) -> int:
    in_waves = waves.check_options(arguments)
    if not in_waves:
        watch.check_options(arguments)
    signed = saved.read_from_option(arguments)
    jobs = _jobs(arguments, signed)
    if arguments.save is not None:
        return saved.save(jobs, arguments)
    if arguments.dry_run:
        if arguments.wait:
            raise UsageError("--wait: a dry run sends nothing; leave out one of the two")
        from broker.jobs.dry_run import dry_run

        return dry_run(jobs, arguments.waves or (), as_json=arguments.json)
    if in_waves:
        from broker.rollouts.send import send_in_waves

        return send_in_waves(jobs, arguments)

    async def work(dispatcher: "Dispatcher") -> int:
        if signed is None:
            sent = await _send_all(dispatcher, jobs, as_json=arguments.json)
        else:
            sent = [await dispatcher.dispatch_signed(signed)]
            _print_sent(sent[0], as_json=arguments.json)
        print_offer_hint(sent, "--mandatory-at T")
        status = DONE if len(sent) == len(jobs) else FAILED
        if not arguments.wait:
            return status
        end = time.monotonic() + (arguments.give_up_after or 0)
        for job in sent:
            limit = arguments.give_up_after and end - time.monotonic()
            watched = await watch.watch(dispatcher, job.id, as_json=arguments.json, limit=limit)
            status = max(status, watched)
        return status

    with suggest_for_unroutable(target for job in jobs for target in job.targets):
        return with_dispatcher(work)


def _jobs(arguments: argparse.Namespace, signed: "SignedJob | None") -> "list[Job]":
    if signed is not None:
        _check_file_alone(arguments)
        return [saved.job_of(arguments, signed)]
    jobs = [read_job(arguments)] if arguments.file is None else _from_file(arguments)
    if arguments.secret:
        return secrets.sealed(jobs, secrets.read_secrets(arguments.secret))
    return jobs


async def _send_all(dispatcher: "Dispatcher", jobs: "list[Job]", *, as_json: bool) -> "list[Job]":
    """Send jobs; print each; return those that were sent."""
    sent: list[Job] = []
    unroutable: list[Target] = []
    try:
        async for job, error in dispatcher.dispatch_all(jobs):
            if error is None:
                _print_sent(job, as_json=as_json)
                sent.append(job)
            elif len(jobs) == 1:
                raise error
            else:
                print(printable(f"pcm: {job.title}: {error}"), file=sys.stderr)
                unroutable += job.targets if isinstance(error, Unroutable) else ()
    except Unreachable:
        if len(jobs) > 1:
            print(f"pcm: {len(sent)} of {len(jobs)} jobs are confirmed as sent", file=sys.stderr)
        raise
    if unroutable:
        await asyncio.to_thread(print_suggestions, dict.fromkeys(unroutable))
    return sent


def _print_sent(job: "Job", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"job": job.id, "routing_keys": routing_keys(job)}), flush=True)
    else:
        print(job.id, flush=True)


def read_job(arguments: argparse.Namespace, *, resolve: bool = True) -> "Job":
    """Return the job that the options of `pcm send` describe.

    `resolve`: conditions on packages mean the workstations of the history on which they hold now;
    else everyone, and each workstation decides when it has the job.

    Raises:
        UsageError: an option is invalid; the text names it.
    """
    if arguments.file is not None:
        jobs = _from_file(arguments)
        if len(jobs) > 1:
            raise UsageError(f"--file: {arguments.file}: has {len(jobs)} jobs; give one")
        return jobs[0]
    package_options.check_options(arguments)
    if not (arguments.argv or arguments.package or arguments.script):
        raise UsageError("send: give a command after --, or --script, --package or --file")
    if not arguments.to:
        raise UsageError("--to: give a target: all, group:NAME or workstation:NAME")
    now = datetime.now(UTC)
    conditions = read_conditions("--to", arguments.to)
    try:
        package, command = _command(arguments)
        job = Job(
            command=command,
            package=package,
            only_if=conditions or None,
            targets=(everyone,)
            if conditions and not resolve
            else read_targets("--to", arguments.to),
            excluded=read_targets("--not-to", arguments.not_to or []),
            respects_windows=arguments.respects_windows,
            created_at=now,
            **_without_none(
                name=arguments.name,
                comment=arguments.comment,
                max_postponements=arguments.max_postponements,
                min_interval=arguments.min_interval,
                offer_at=_moment("--offer-at", arguments.offer_at, now),
                mandatory_at=_moment("--mandatory-at", arguments.mandatory_at, now),
                expires_at=_moment("--expires-at", arguments.expires_at, now),
                supersedes=arguments.supersedes,
            ),
        )
        check_not_past(job, now)
    except ValidationError as error:
        raise UsageError(as_option(explain(error))) from error
    except ValueError as error:
        raise UsageError(as_option(str(error))) from error
    return job


def _command(arguments: argparse.Namespace) -> "tuple[PackageReference | None, Command]":
    """Return the command of a job, and its package, if it has one."""
    environment = dict(map(_variable, arguments.env or []))
    if arguments.package is not None:
        package, command = package_options.package_of(arguments)
        return package, Command.model_validate(
            {**command.model_dump(), "environment": {**command.environment, **environment}}
        )
    if arguments.script is not None:
        program = package_options.script_of(arguments.script, arguments.argv)
    else:
        words = (" ".join(arguments.argv),) if arguments.shell else tuple(arguments.argv)
        program = {"argv": words, "shell": arguments.shell}
    return None, Command(
        **program,
        background=arguments.background,
        user_input_required=arguments.user_input_required,
        user_may_stop=arguments.user_may_stop,
        survives_agent=arguments.survives_agent,
        leaves_processes=arguments.leaves_processes,
        rerun_interrupted=arguments.rerun_interrupted,
        environment=environment,
        **_without_none(
            cwd=arguments.cwd,
            run_as=arguments.run_as,
            timeout=arguments.timeout,
            success_exit_codes=_codes("--success-exit", arguments.success_exit),
            restart_exit_codes=_codes("--restart-exit", arguments.restart_exit),
            platforms=arguments.platform,
        ),
    )


def _from_file(arguments: argparse.Namespace) -> "list[Job]":
    from broker.jobs.files.job_file import WrongJobFile, read_jobs

    _check_file_alone(arguments)
    try:
        return read_jobs(arguments.file)
    except OSError as error:
        raise UsageError(f"--file: {arguments.file}: {error.strerror}") from error
    except WrongJobFile as error:
        raise UsageError(str(error)) from error


def _check_file_alone(arguments: argparse.Namespace) -> None:
    given = [name for name, value in vars(arguments).items() if value and name not in _WITH_FILE]
    if given:
        option = "COMMAND" if given[0] == "argv" else f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{option}: not with --file; leave out one of the two")


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--env: {text!r}: write NAME=VALUE")
    return name, value


def _codes(option: str, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    try:
        return frozenset(int(code) for code in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: {text!r}: write numbers, such as 0,2") from error


def _moment(option: str, text: str | None, now: datetime) -> Any:
    if text is None:
        return None
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
