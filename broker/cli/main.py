"""`pcm`: the administrator's program."""

import argparse
import gc
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from broker.cli.command_line import Parser, UsageError, run
from broker.cli.setting_warnings import print_warnings
from broker.cli.streams import prepare_streams
from broker.log import silence_amqp_libraries

COMMANDS = {
    "send": "broker.jobs.send",
    "check": "broker.jobs.check",
    "watch": "broker.watch.command",
    "jobs": "broker.results.jobs",
    "show": "broker.results.show",
    "output": "broker.results.output",
    "why": "broker.results.why.command",
    "report": "broker.results.report.command",
    "cancel": "broker.jobs.cancel",
    "rerun": "broker.jobs.rerun",
    "rollout": "broker.rollouts.command",
    "schedule": "broker.schedules.command",
    "workstations": "broker.workstations.listing",
    "groups": "broker.workstations.listing",
    "pause": "broker.workstations.orders",
    "resume": "broker.workstations.orders",
    "forget": "broker.workstations.orders",
    "enrol": "broker.enrolment.command",
    "rotate": "broker.enrolment.command",
    "revoke": "broker.enrolment.command",
    "collect": "broker.collect.command",
    "history": "broker.collect.command",
    "dead": "broker.dead_letters.command",
    "doctor": "broker.doctor.command",
    "topology": "broker.cli.topology",
    "schema": "broker.cli.topology",
    "keygen": "broker.cli.keygen",
    "approve": "broker.jobs.approve",
}
"""The commands in the order of the help, each with its module, which defines `add_to`."""


def main() -> None:
    """Run the program."""
    gc.set_threshold(20_000)  # a command keeps most of its objects until it ends
    prepare_streams()
    status = command(sys.argv[1:])
    gc.freeze()  # no collection at exit
    sys.exit(status)


def command(words: Sequence[str]) -> int:
    """Run a command line; return its exit status."""
    silence_amqp_libraries()
    # Words after "--" are a command, even if they look like options.
    separator = words.index("--") if "--" in words else len(words)
    arguments, unrecognized = _parser(words).parse_known_args(words[:separator])
    arguments.argv = list(words[separator + 1 :])

    def work() -> int:
        if unrecognized:
            raise UsageError(_unrecognized_text(arguments, unrecognized))
        if arguments.argv and not getattr(arguments, "takes_command", False):
            raise UsageError(f"{arguments.command}: accepts no command after --")
        print_warnings("pcm")
        status: int = arguments.run(arguments)
        return status

    return run("pcm", work)


def _unrecognized_text(arguments: argparse.Namespace, words: list[str]) -> str:
    text = shlex.join(words)
    takes_command = getattr(arguments, "takes_command", False)
    if takes_command and not (arguments.argv or words[0].startswith("-")):
        return f"{arguments.command}: {text}: put -- before the command: -- {text}"
    return f"{arguments.command}: unrecognized arguments: {text}"


def _parser(words: Sequence[str]) -> Parser:
    """Return the parser of a command line; load only the module of the command that it names."""
    if words and words[0] in COMMANDS:
        parser = Parser(prog="pcm")
        modules: Iterable[str] = (COMMANDS[words[0]],)
    else:
        parser = _parser_with_help()
        modules = dict.fromkeys(COMMANDS.values())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in modules:
        import_module(module).add_to(commands)
    return parser


def _parser_with_help() -> Parser:
    from broker.settings import HistorySettings, ManagementSettings, describe

    parser = Parser(
        prog="pcm",
        description="Sends commands to the workstations of a fleet and shows their results.",
        epilog=describe(HistorySettings, ManagementSettings)
        + "\n\nexit status: 0 done; 1 failed; 2 wrong usage; 3 the broker is unreachable",
    )
    parser.add_version()
    return parser
