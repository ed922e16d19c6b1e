"""`pcm`: the program for administrators."""

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING

from broker.command_line import DONE, OUT_OF_REACH, Parser, Wrong, WrongUse, run
from broker.settings import describe, load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.dispatcher import Dispatcher
    from schemas import Job


def main() -> None:
    """Run the program."""
    # What follows "--" is a command, whatever it looks like.
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments = _parser().parse_args(words[:cut])
    arguments.argv = words[cut + 1 :]
    sys.exit(run("pcm", lambda: _do(arguments)))


def _do(arguments: argparse.Namespace) -> int:
    if arguments.argv and arguments.command != "send":
        raise WrongUse(f"{arguments.command}: takes no command after --")
    match arguments.command:
        case "send":
            return _send(arguments)
        case "watch":
            return _with_dispatcher(lambda dispatcher: _watch(dispatcher, arguments))
        case "cancel":
            return _with_dispatcher(lambda dispatcher: _cancel(dispatcher, arguments))
        case "dead":
            from broker.dead_command import dead

            return dead(arguments)
        case "topology":
            return _topology(arguments)
        case _:
            return _schema()


def _send(arguments: argparse.Namespace) -> int:
    from broker.send import read_job
    from schemas import Context, Requirement

    job = read_job(arguments)

    async def work(dispatcher: "Dispatcher") -> int:
        await dispatcher.dispatch(job)
        _print_sent(job, as_json=arguments.json)
        if not arguments.wait:
            return DONE
        if (job.context, job.requirement) == (Context.FOREGROUND, Requirement.OPTIONAL):
            print("pcm: it is an offer: it runs where a user says so", file=sys.stderr)
        arguments.job = job.id
        return await _watch(dispatcher, arguments)

    return _with_dispatcher(work)


def _print_sent(job: "Job", *, as_json: bool) -> None:
    if as_json:
        from broker.topology import routing_keys

        sent = {"job": job.id, "routing_keys": routing_keys(job)}
        print(json.dumps(sent), flush=True)
    else:
        print(job.id, flush=True)


async def _watch(dispatcher: "Dispatcher", arguments: argparse.Namespace) -> int:
    from broker.watch import watch

    return await watch(
        dispatcher, arguments.job, as_json=arguments.json, limit=arguments.give_up_after
    )


async def _cancel(dispatcher: "Dispatcher", arguments: argparse.Namespace) -> int:
    await dispatcher.cancel(arguments.job, arguments.reason)
    if arguments.json:
        print(json.dumps({"job": arguments.job, "cancelled": True}))
    else:
        print(f"{arguments.job}: cancelled; pcm watch {arguments.job} tells where it stopped")
    return DONE


def _with_dispatcher(work: "Callable[[Dispatcher], Awaitable[int]]") -> int:
    """Connect, work, and return the exit status; what goes wrong is a line on stderr."""
    from pydantic import ValidationError

    from broker.connection import BrokerError, Unreachable
    from broker.dispatcher import Dispatcher, UnknownJob
    from broker.send import as_option
    from broker.settings import DispatcherSettings
    from schemas import explain

    settings = load(DispatcherSettings)

    async def connected() -> int:
        async with Dispatcher.connect(settings, told=_trying) as dispatcher:
            return await work(dispatcher)

    try:
        return asyncio.run(connected())
    except Unreachable as error:
        print(f"pcm: the broker is out of reach: {error}", file=sys.stderr)
        return OUT_OF_REACH
    except (BrokerError, UnknownJob) as error:
        raise Wrong(str(error)) from error
    except ValidationError as error:
        raise WrongUse(as_option(explain(error))) from error
    except ValueError as error:
        raise WrongUse(str(error)) from error


def _trying(reason: str) -> None:
    print(f"pcm: {reason}; trying again", file=sys.stderr)


def _topology(arguments: argparse.Namespace) -> int:
    from broker import topology
    from broker.connection import BrokerError, Unreachable, connect, translated
    from broker.settings import BrokerSettings

    if arguments.what == "show":
        rows = [(route.words, sorted(map(str, route.bound))) for route in topology.ROUTES]
        if arguments.json:
            print(
                json.dumps([{"routing_key": f"{words}.*", "bound": bound} for words, bound in rows])
            )
        else:
            print(f"{'ROUTING KEY':<24}BOUND AGENTS")
            for words, bound in rows:
                print(f"{words + '.*':<24}{', '.join(bound)}")
        return DONE

    settings = load(BrokerSettings)

    async def apply() -> None:
        async with connect(settings, "pcm topology") as connection, connection.channel() as channel:
            with translated("declaring the topology"):
                await topology.apply(channel)

    try:
        asyncio.run(apply())
    except Unreachable as error:
        print(f"pcm: the broker is out of reach: {error}", file=sys.stderr)
        return OUT_OF_REACH
    except BrokerError as error:
        raise Wrong(str(error)) from error
    names = [exchange.name for exchange in topology.EXCHANGES]
    queues = [queue.name for queue in topology.central_queues()]
    print(f"exchanges {', '.join(names)} and queues {', '.join(queues)} are there")
    return DONE


def _schema() -> int:
    from pydantic.json_schema import models_json_schema

    from schemas import Cancellation, Job, Report

    models = [(model, "validation") for model in (Job, Cancellation, Report)]
    _, schema = models_json_schema(models, title="Package Command Manager: messages")  # type: ignore[arg-type]
    print(json.dumps(schema, indent=2))
    return DONE


def _seconds(text: str) -> float:
    from schemas.times import parse_duration

    try:
        return float(parse_duration(text).total_seconds())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _job_id(text: str) -> str:
    from schemas.names import check_name

    try:
        return check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> Parser:
    from broker.dead_command import add_to as add_dead
    from broker.settings import DispatcherSettings

    parser = Parser(
        prog="pcm",
        description="Sends commands to the workstations of a fleet, and tells what came of them.",
        epilog=describe(DispatcherSettings)
        + "\n\nexit status: 0 done; 1 the work failed somewhere; 2 wrong usage; 3 no broker",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    waiting = Parser(add_help=False)
    waiting.add_argument("--json", action="store_true", help="print JSON, a line a report")
    waiting.add_argument(
        "--give-up-after",
        metavar="D",
        type=_seconds,
        help="stop watching after so long, such as 10m",
    )
    send = commands.add_parser(
        "send",
        help="send a command as a job",
        description="Sends a command as a job, and prints the job's id. Times T are ISO 8601 with"
        " a zone, +10m, now, or 'YYYY-MM-DDTHH:MM local' for each workstation's own clock;"
        " durations D are such as 30s, 5m, 1h30m.",
        usage="pcm send [OPTION]... -- COMMAND [ARG]...\n       pcm send --file FILE [OPTION]...",
        parents=[waiting],
    )
    add = send.add_argument
    add(
        "--to",
        action="append",
        metavar="TARGET",
        help="all (default), group:NAME or workstation:NAME; again for more",
    )
    add("--background", action="store_true", help="run by the service agent, shown to nobody")
    add("--offer-at", metavar="T", help="not seen before (default: at once)")
    add("--mandatory-at", metavar="T", help="runs then, wanted or not (default: optional)")
    add("--expires-at", metavar="T", help="never started after")
    add("--timeout", metavar="D", help="ended after so long (default: 1h)")
    add("--success-exit", metavar="N,N", help="exit codes of success (default: 0)")
    add("--restart-exit", metavar="N,N", help="of success and restart (default: 1641,3010)")
    add("--user-input-required", action="store_true", help="never run without a user")
    add("--survives-agent", action="store_true", help="goes on when its agent ends or restarts")
    add("--rerun-interrupted", action="store_true", help="may start again after a crash")
    add("--supersedes", metavar="KEY", help="replaces older jobs of this key not yet started")
    add("--platform", action="append", metavar="P", help="only on, such as linux or linux/x86_64")
    add("--env", action="append", metavar="K=V", help="environment variable; again for more")
    add("--cwd", metavar="DIR", help="folder to start in")
    add("--shell", action="store_true", help="the command is a script for /bin/sh -c")
    add("--name", metavar="TEXT", help="name for people (default: the command)")
    add("--file", metavar="FILE", help="a whole job as JSON; - for stdin")
    add("--wait", action="store_true", help="watch it, as pcm watch does")
    watch = commands.add_parser(
        "watch",
        help="follow a job until it has ended everywhere",
        description="Follows a job until it has ended on every workstation that received it or"
        " that it names.",
        parents=[waiting],
    )
    cancel = commands.add_parser(
        "cancel",
        help="withdraw a job",
        description="Withdraws a job: where it has not started it never does, where it runs it"
        " is ended.",
    )
    cancel.add_argument("--reason", metavar="TEXT", default="", help="told to the workstations")
    cancel.add_argument("--json", action="store_true", help="print JSON")
    for follower in (watch, cancel):
        follower.add_argument("job", metavar="JOB", type=_job_id, help="the job's id")
    add_dead(commands)
    topology = commands.add_parser(
        "topology",
        help="the table of keys, and who is bound",
        description="Shows which agents each kind of job reaches, or declares the exchanges and"
        " queues that are not an agent's.",
    )
    topology.add_argument("what", choices=["show", "apply"])
    topology.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser(
        "schema", help="JSON Schema of every message", description="Prints JSON Schema."
    )
    return parser
