"""`pcm`: the program for administrators."""

import argparse
import gc
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from broker.command_line import Parser, WrongUse, run
from broker.log import silence_amqp_libraries

COMMANDS = {
    "send": "send",
    "check": "check",
    "watch": "watch",
    "jobs": "jobs",
    "show": "show",
    "output": "output",
    "why": "why",
    "report": "report",
    "cancel": "cancel",
    "rerun": "rerun",
    "rollout": "rollout",
    "schedule": "schedule",
    "workstations": "workstations",
    "groups": "workstations",
    "pause": "fleet",
    "resume": "fleet",
    "forget": "fleet",
    "enrol": "enrol",
    "rotate": "enrol",
    "revoke": "enrol",
    "collect": "history",
    "history": "history",
    "dead": "dead",
    "doctor": "doctor",
    "topology": "topology",
    "schema": "topology",
    "keygen": "keygen",
    "approve": "approve",
}
"""The commands, in the order of the help, each with the module of `broker.commands` it is in."""


def main() -> None:
    """Run the program."""
    gc.set_threshold(20_000)  # most of what a command makes, it keeps to its end
    status = command(sys.argv[1:])
    gc.freeze()  # nor is anything looked for then
    sys.exit(status)


def command(words: Sequence[str]) -> int:
    """Run a command line; return its exit status."""
    silence_amqp_libraries()
    # What follows "--" is a command, whatever it looks like.
    cut = words.index("--") if "--" in words else len(words)
    arguments, strange = _parser(words).parse_known_args(words[:cut])
    arguments.argv = list(words[cut + 1 :])

    def work() -> int:
        if strange:
            raise WrongUse(_strange(arguments, strange))
        if arguments.argv and not getattr(arguments, "takes_command", False):
            raise WrongUse(f"{arguments.command}: takes no command after --")
        status: int = arguments.run(arguments)
        return status

    return run("pcm", work)


def _strange(arguments: argparse.Namespace, words: list[str]) -> str:
    """Return what is wrong where a command line has words that nobody asked for."""
    text = shlex.join(words)
    takes_command = getattr(arguments, "takes_command", False)
    if takes_command and not (arguments.argv or words[0].startswith("-")):
        return f"{arguments.command}: {text}: put -- before the command: -- {text}"
    return f"{arguments.command}: unrecognized arguments: {text}"


def _parser(words: Sequence[str]) -> Parser:
    """Return what reads a command line; where it begins with a command, only of that."""
    if words and words[0] in COMMANDS:
        parser = Parser(prog="pcm")
        modules: Iterable[str] = (COMMANDS[words[0]],)
    else:
        parser = _helpful()
        modules = dict.fromkeys(COMMANDS.values())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in modules:
        import_module(f"broker.commands.{module}").add_to(commands)
    return parser


def _helpful() -> Parser:
    from broker.settings import HistorySettings, ManagementSettings, describe

    parser = Parser(
        prog="pcm",
        description="Sends commands to the workstations of a fleet, and tells what came of them.",
        epilog=describe(HistorySettings, ManagementSettings)
        + "\n\nexit status: 0 done; 1 the work failed somewhere; 2 wrong usage; 3 no broker",
    )
    parser.add_version()
    return parser
