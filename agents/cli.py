"""`pcm-agent`: the program on workstations."""

import argparse
import asyncio
import json
import resource
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agents.state import StateError
from broker.command_line import DONE, Parser, Wrong, WrongUse, run
from broker.settings import describe, load

_FILES = 65536

if TYPE_CHECKING:
    from agents.agent import Agent
    from agents.settings import AgentSettings


def main() -> None:
    """Run the program."""
    arguments = _parser().parse_args()
    sys.exit(run("pcm-agent", lambda: _do(arguments)))


def _do(arguments: argparse.Namespace) -> int:
    from agents.settings import AgentSettings

    settings = load(
        AgentSettings,
        workstation=arguments.workstation,
        groups=arguments.group,
        state_dir=arguments.state_dir,
        user=arguments.user,
        **{name: getattr(arguments, name, None) for name in ("accept_offers", "no_window")},
    )
    try:
        match arguments.command:
            case "service" | "interactive":
                return _run_agent(arguments.command, settings)
            case "pending" | "history":
                return _list(arguments.command, settings.state_dir, as_json=arguments.json)
            case _:
                return _ask(arguments, settings)
    except StateError as error:
        raise Wrong(str(error)) from error


def _run_agent(kind: str, settings: "AgentSettings") -> int:
    from broker import log
    from broker.topology import AgentKind, agent_name

    if kind == AgentKind.INTERACTIVE:
        settings = settings.model_copy(update={"user": _user(settings)})
    name = agent_name(AgentKind(kind), settings.user)
    log.configure(workstation=settings.workstation, agent=name)

    async def work() -> None:
        agent: Agent
        if kind == AgentKind.SERVICE:
            from agents.service import ServiceAgent

            agent = ServiceAgent(settings)
        else:
            from agents.interactive import InteractiveAgent

            agent = InteractiveAgent(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, agent.stop)
        await agent.run()

    # Were it ignored, as whoever started us may have had it, nobody would know how commands end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Each command takes a handful of files; the usual soft limit is for other programs.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        asyncio.run(work())
    except BaseExceptionGroup as group:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, StateError):  # such as a ledger that was damaged meanwhile
            raise found from group
        raise
    return DONE


def _user(settings: "AgentSettings") -> str:
    """Return whom the interactive agent serves; a service agent does not mind what is no name."""
    from schemas.names import check_name

    try:
        return check_name(settings.user)
    except ValueError as error:
        raise WrongUse(f"PCM_USER: {error}") from error


def _list(what: str, state_dir: Path, *, as_json: bool) -> int:
    from agents import listing

    rows = listing.pending(state_dir) if what == "pending" else listing.history(state_dir)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        if what == "pending":
            listing.show_pauses(listing.pauses(state_dir))
        listing.show(what, rows)
    return DONE


def _ask(arguments: argparse.Namespace, settings: "AgentSettings") -> int:
    from agents.control import Declined, ask
    from broker.topology import AgentKind, agent_name
    from schemas import WallClock
    from schemas.times import parse_moment

    request = {"do": arguments.command, "job": arguments.job}
    if arguments.command == "postpone":
        try:
            until = parse_moment(arguments.until, datetime.now(UTC))
        except ValueError as error:
            raise WrongUse(f"--until: {error}") from error
        request["until"] = (until.instant() if isinstance(until, WallClock) else until).isoformat()
    directory = settings.state_dir / agent_name(AgentKind.INTERACTIVE, _user(settings))
    try:
        print(ask(directory, request))
    except Declined as error:
        raise Wrong(str(error)) from error
    return DONE


def _parser() -> Parser:
    from agents.settings import AgentSettings

    common = Parser(add_help=False)
    common.add_argument("--workstation", metavar="NAME", help="this workstation's name")
    common.add_argument("--group", metavar="G", action="append", help="a group that it is in")
    common.add_argument("--state-dir", metavar="DIR", help="where its agents keep their state")
    common.add_argument("--user", metavar="NAME", help="whom the interactive agent serves")
    parser = Parser(
        prog="pcm-agent",
        description="Runs the jobs that reach this workstation, and answers for them.",
        epilog=describe(AgentSettings),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> Parser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    command("service", "run the service agent: unattended, for all jobs")
    interactive = command("interactive", "run the interactive agent: in a user's session")
    interactive.add_argument(
        "--no-window",
        action="store_true",
        default=None,
        help="no window: the user decides by the commands run, postpone and decline",
    )
    interactive.add_argument(
        "--accept-offers",
        action="store_true",
        default=None,
        help="run optional offers at once: the user's standing yes",
    )
    for name, text in (
        ("pending", "list the jobs that wait, are offered, or run here"),
        ("history", "list the jobs that ended here"),
    ):
        command(name, text).add_argument("--json", action="store_true", help="print JSON")
    for name, text in (
        ("run", "run an offered job now"),
        ("postpone", "be offered a job again later"),
        ("decline", "do not run an optional job"),
    ):
        command(name, text).add_argument("job", metavar="JOB", help="its id, or the beginning")
    commands.choices["postpone"].add_argument(
        "--until", metavar="T", required=True, help="+10m, or a time such as 2026-11-30T09:00Z"
    )
    return parser
