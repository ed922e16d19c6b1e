"""The command line of `pcm-agent`, the program on workstations."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.store.state_folder import StateError
from broker import completion, setting_warnings
from broker.cli.command_line import DONE, CommandError, Parser, UsageError, argument_errors, run
from broker.cli.streams import prepare_streams
from broker.settings import describe, load

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agents.agent import Agent
    from agents.settings import AgentSettings
    from agents.window.address import Address
    from agents.window.start import WindowOptions
    from broker.amqp.topology import AgentKind

    _AddCommand = Callable[[str, str], Parser]

_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Run the program."""
    prepare_streams()
    sys.exit(run_pcm_agent(sys.argv[1:]))


def run_pcm_agent(words: Sequence[str]) -> int:
    """Run a command line; return its exit status."""
    arguments = _parser().parse_args(words)
    return run("pcm-agent", lambda: _run_command(arguments))


def _run_command(arguments: argparse.Namespace) -> int:
    from agents.settings import AgentSettings

    if arguments.command == "completion":
        return completion.print_script(_parser(), arguments.shell)
    settings = load(
        AgentSettings,
        workstation=arguments.workstation,
        groups=arguments.group,
        state_dir=arguments.state_dir,
        user=arguments.user,
        **{name: getattr(arguments, name, None) for name in ("accept_offers", "no_window")},
    )
    if arguments.command not in ("service", "interactive"):  # they log the warnings
        setting_warnings.print_warnings("pcm-agent")
    try:
        match arguments.command:
            case "service":
                return _run_service(settings)
            case "interactive":
                return _run_interactive(arguments, settings)
            case "window":
                return _open_window(arguments, settings)
            case "pending" | "history":
                return _list(arguments.command, settings.state_dir, as_json=arguments.json)
            case _:
                return _ask(arguments, settings)
    except StateError as error:
        raise CommandError(str(error)) from error


def _run_service(settings: "AgentSettings") -> int:
    from broker.amqp.topology import AgentKind

    return _run_agent(AgentKind.SERVICE, settings, lambda agent: agent.run())


def _run_interactive(arguments: argparse.Namespace, settings: "AgentSettings") -> int:
    from broker.amqp.topology import AgentKind

    _check_user(settings.user)
    run_interactive = partial(_run_agent, AgentKind.INTERACTIVE, settings)
    if arguments.web:
        from agents.window import start

        _check_extra()
        return run_interactive(
            lambda agent: start.run_with_web(agent, _window_options(arguments, settings))
        )
    if settings.no_window or not _on_terminal():
        return run_interactive(lambda agent: agent.run())
    from agents.window import start

    light = arguments.light
    return run_interactive(lambda agent: start.run_with_window(agent, light=light), in_file=True)


def _open_window(arguments: argparse.Namespace, settings: "AgentSettings") -> int:
    from agents.window import start

    _check_user(settings.user)
    window_options = _window_options(arguments, settings)
    if arguments.web:
        _check_extra()
        asyncio.run(start.serve_windows(window_options))
    elif _on_terminal() or "TEXTUAL_DRIVER" in os.environ:  # set in the process of a web page
        asyncio.run(start.open_window(window_options))
    else:
        raise UsageError("window: needs a terminal; without one, serve it with --web HOST:PORT")
    return DONE


def _window_options(arguments: argparse.Namespace, settings: "AgentSettings") -> "WindowOptions":
    from agents.window.start import WindowOptions

    options = ("--state-dir", str(settings.state_dir.absolute()), f"--user={settings.user}")
    return WindowOptions(_directory(settings), arguments.light, arguments.web, options)


def _on_terminal() -> bool:
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _check_extra() -> None:
    if not find_spec("textual_serve"):
        raise CommandError("--web: install package-command-manager[web]")


def _agent(kind: "AgentKind", settings: "AgentSettings") -> "Agent":
    if kind == "service":
        from agents.service import ServiceAgent

        return ServiceAgent(settings)
    from agents.interactive import InteractiveAgent

    return InteractiveAgent(settings)


def _run_agent(
    kind: "AgentKind",
    settings: "AgentSettings",
    work: "Callable[[Agent], Coroutine[Any, Any, None]]",
    *,
    in_file: bool = False,
) -> int:
    from agents.execution.environment import set_up_process
    from broker import log
    from broker.amqp.topology import agent_name

    name = agent_name(kind, settings.user)
    file = _directory(settings) / "agent.log" if in_file else None
    log.configure(file=file, workstation=settings.workstation, agent=name)
    for text in setting_warnings.warnings():
        log.get_logger().warning("settings.warning", reason=text)

    # By nohup and by a shell's background jobs: they do not stop it, and its commands get them.
    ignored = [number for number in _MAY_BE_IGNORED if signal.getsignal(number) is signal.SIG_IGN]

    async def run_until_stopped() -> None:
        agent = _agent(kind, settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, *_MAY_BE_IGNORED):
            loop.add_signal_handler(number, int if number in ignored else agent.stop)
        await work(agent)

    set_up_process(settings.concurrency)
    try:
        asyncio.run(run_until_stopped())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, StateError):  # such as a ledger that was damaged meanwhile
            raise error from group
        raise
    return DONE


def _check_user(user: str) -> None:
    """Refuse a login name that is not valid; a service agent accepts any."""
    from schemas.names import check_user

    try:
        check_user(user)
    except ValueError as error:
        raise UsageError(f"PCM_USER: {error}") from error


def _directory(settings: "AgentSettings") -> Path:
    """Return the folder of the user's interactive agent."""
    from broker.amqp.topology import AgentKind, agent_name, agent_word

    return settings.state_dir / agent_word(agent_name(AgentKind.INTERACTIVE, settings.user))


def _list(what: str, state_dir: Path, *, as_json: bool) -> int:
    from agents.user import listing

    rows = listing.pending(state_dir) if what == "pending" else listing.history(state_dir)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        if what == "pending":
            listing.show_pauses(listing.pauses(state_dir))
        listing.show(what, rows)
    return DONE


def _ask(arguments: argparse.Namespace, settings: "AgentSettings") -> int:
    from agents.user.control import RequestRejected, ask, read_reason
    from schemas import WallClock
    from schemas.times import parse_moment

    request = {"do": arguments.command, "job": arguments.job}
    if arguments.command == "postpone":
        try:
            until = parse_moment(arguments.until, datetime.now(UTC))
        except ValueError as error:
            raise UsageError(f"--until: {error}") from error
        request["until"] = (until.instant() if isinstance(until, WallClock) else until).isoformat()
    elif arguments.command == "decline":
        try:
            request["reason"] = read_reason(arguments.reason)
        except RequestRejected as error:
            raise UsageError(str(error)) from error
    _check_user(settings.user)
    try:
        print(ask(_directory(settings), request))
    except RequestRejected as error:
        raise CommandError(str(error)) from error
    return DONE


def _parser() -> Parser:
    from agents.settings import AgentSettings

    parser = Parser(
        prog="pcm-agent",
        description="Runs the jobs of this workstation and reports their results.",
        epilog=describe(AgentSettings),
    )
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common_options()

    def add_command(name: str, text: str) -> Parser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    _add_programs(add_command)
    _add_listings(add_command)
    _add_actions(add_command)
    text = "print a shell's completion script"
    completion.add_argument(commands.add_parser("completion", help=text, description=text))
    return parser


def _common_options() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--workstation", metavar="NAME", help="this workstation's name")
    common.add_argument("--group", metavar="G", action="append", help="a group of it; repeatable")
    common.add_argument("--state-dir", metavar="DIR", help="the folder of its agents' state")
    common.add_argument("--user", metavar="NAME", help="the interactive agent's user")
    return common


def _add_programs(add_command: "_AddCommand") -> None:
    """Add the commands that run until they are stopped."""
    add_command("service", "run the service agent: unattended, for all jobs")
    interactive = add_command("interactive", "run the interactive agent in a user's session")
    interactive.add_argument(
        "--no-window",
        action="store_true",
        default=None,
        help="open no window; the user decides with the commands run, postpone and decline",
    )
    interactive.add_argument(
        "--accept-offers",
        action="store_true",
        default=None,
        help="run optional offers without asking",
    )
    window = add_command("window", "open the window of the user's running interactive agent")
    for with_window in (interactive, window):
        with_window.add_argument(
            "--web",
            metavar="HOST:PORT",
            type=_address,
            help="serve the window to browsers at this address instead of the terminal",
        )
        with_window.add_argument(
            "--light", action="store_true", help="dark text on light background"
        )


def _add_listings(add_command: "_AddCommand") -> None:
    for name, text in (
        ("pending", "list the jobs that are waiting, offered or running here"),
        ("history", "list the jobs that ended here"),
    ):
        add_command(name, text).add_argument("--json", action="store_true", help="print JSON")


def _add_actions(add_command: "_AddCommand") -> None:
    """Add the commands that send a user's action to the interactive agent."""
    actions = {
        name: add_command(name, text)
        for name, text in (
            ("run", "run an offered job now"),
            ("postpone", "postpone a job; it is offered again later"),
            ("decline", "decline an optional job"),
            ("stop", "stop a running job, if the job allows it"),
        )
    }
    for action in actions.values():
        action.add_argument("job", metavar="JOB", help="the job's id or its beginning")
    actions["postpone"].add_argument(
        "--until", metavar="T", required=True, help="+10m, or a time such as 2026-11-30T09:00Z"
    )
    actions["decline"].add_argument(
        "--reason", metavar="TEXT", default="", help="the reason; administrators can read it"
    )


def _address(text: str) -> "Address":
    from agents.window.address import parse_address

    with argument_errors():
        return parse_address(text)
