"""`pcm`: the program for administrators."""

import argparse
import shlex
import sys

from broker.command_line import Parser, WrongUse, run
from broker.commands import (
    approve,
    cancel,
    check,
    dead,
    doctor,
    enrol,
    fleet,
    history,
    jobs,
    keygen,
    output,
    report,
    rerun,
    rollout,
    schedule,
    send,
    show,
    topology,
    watch,
    why,
    workstations,
)
from broker.settings import describe

_COMMANDS = (
    send,
    check,
    watch,
    jobs,
    show,
    output,
    why,
    report,
    cancel,
    rerun,
    rollout,
    schedule,
    workstations,
    fleet,
    enrol,
    history,
    dead,
    doctor,
    topology,
    keygen,
    approve,
)


def main() -> None:
    """Run the program."""
    # What follows "--" is a command, whatever it looks like.
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments, strange = _parser().parse_known_args(words[:cut])
    arguments.argv = words[cut + 1 :]

    def work() -> int:
        if strange:
            raise WrongUse(_strange(arguments, strange))
        if arguments.argv and not getattr(arguments, "takes_command", False):
            raise WrongUse(f"{arguments.command}: takes no command after --")
        status: int = arguments.run(arguments)
        return status

    sys.exit(run("pcm", work))


def _strange(arguments: argparse.Namespace, words: list[str]) -> str:
    """Return what is wrong where a command line has words that nobody asked for."""
    text = shlex.join(words)
    takes_command = getattr(arguments, "takes_command", False)
    if takes_command and not (arguments.argv or words[0].startswith("-")):
        return f"{arguments.command}: {text}: put -- before the command: -- {text}"
    return f"{arguments.command}: unrecognized arguments: {text}"


def _parser() -> Parser:
    from broker.settings import HistorySettings, ManagementSettings

    parser = Parser(
        prog="pcm",
        description="Sends commands to the workstations of a fleet, and tells what came of them.",
        epilog=describe(HistorySettings, ManagementSettings)
        + "\n\nexit status: 0 done; 1 the work failed somewhere; 2 wrong usage; 3 no broker",
    )
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_to(commands)
    return parser
