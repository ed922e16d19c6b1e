"""`pcm`: the administrator's program."""

import argparse
import gc
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from broker.cli.command_line import Parser, UsageError, run
from broker.cli.streams import prepare_streams
from broker.log import silence_amqp_libraries
from broker.setting_warnings import print_warnings
from broker.settings import HistorySettings, ManagementSettings, describe

COMMANDS = {
    "send": ("broker.jobs.send", "send a command as a job"),
    "check": ("broker.jobs.check", "validate job files"),
    "watch": ("broker.watch.command", "follow a job until it has ended everywhere"),
    "jobs": ("broker.results.jobs", "list the jobs and their states"),
    "show": ("broker.results.show", "show a job and its state on each workstation"),
    "output": ("broker.results.output", "print the output of a job's commands"),
    "why": ("broker.results.why.command", "explain a job's state on a workstation"),
    "report": ("broker.results.report.command", "write a job's results as an HTML page or as CSV"),
    "cancel": ("broker.jobs.cancel", "cancel a job"),
    "rerun": ("broker.jobs.rerun", "send a job's command again where it failed"),
    "package": ("broker.packages.command", "build, publish and look after packages"),
    "rollout": ("broker.rollouts.command", "list, show, pause, resume or abort rollouts"),
    "schedule": ("broker.schedules.command", "manage repeating jobs"),
    "workstations": ("broker.workstations.listing", "list workstations"),
    "groups": ("broker.workstations.listing", "list groups, or the members of a group"),
    "packages": ("broker.inventory.command", "count packages over the fleet"),
    "uninstall": ("broker.inventory.uninstall", "uninstall a package where it is"),
    "pause": ("broker.workstations.orders", "pause workstations"),
    "resume": ("broker.workstations.orders", "resume paused workstations"),
    "forget": ("broker.workstations.orders", "forget removed workstations"),
    "enrol": ("broker.enrolment.command", "create logins and queues for workstations' agents"),
    "rotate": ("broker.enrolment.command", "set new passwords for workstations' agents"),
    "revoke": (
        "broker.enrolment.command",
        "delete the logins and queues of workstations' agents",
    ),
    "collect": ("broker.collect.command", "keep the history up to date, as a service"),
    "history": ("broker.collect.command", "show the state of the history, or rebuild it"),
    "dead": ("broker.dead_letters.command", "list, show, requeue or drop dead letters"),
    "doctor": ("broker.doctor.command", "check the broker and this machine"),
    "topology": ("broker.cli.topology", "show the routing table, or declare the central queues"),
    "schema": ("broker.cli.topology", "print the JSON Schema of every message"),
    "keygen": ("broker.jobs.keygen", "create a key pair for signing jobs"),
    "approve": ("broker.jobs.approve", "add a signature to a saved job"),
    "completion": ("broker.completion", "print a shell's completion script"),
}
"""The commands in the order of the help: their modules, which define `add_to`, and what they do."""


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
    if not words or words[0] not in COMMANDS:
        parser = overview()
        parser.parse_args(words[:1])
        parser.error("COMMAND: give one; pcm --help lists them")
    # Words after "--" are a command, even if they look like options.
    separator = words.index("--") if "--" in words else len(words)
    arguments, unrecognized = command_parser(words[0]).parse_known_args(words[:separator])
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


def command_parser(name: str) -> Parser:
    """Return the parser of a command; load only its module."""
    parser = Parser(prog="pcm")
    module, _ = COMMANDS[name]
    import_module(module).add_to(parser.add_subparsers(dest="command"))
    return parser


def full_parser() -> Parser:
    """Return the parser of all commands with their arguments; load all modules."""
    commands = Parser(prog="pcm").add_subparsers()
    for module in dict.fromkeys(module for module, _ in COMMANDS.values()):
        import_module(module).add_to(commands)
    return overview(commands.choices)


def overview(parsers: Mapping[str, Parser] | None = None) -> Parser:
    """Return the parser of `pcm --help`: by itself it knows no arguments of commands."""
    parser = Parser(
        prog="pcm",
        description="Sends commands to the workstations of a fleet and shows their results.",
        epilog=describe(HistorySettings, ManagementSettings)
        + "\n\nexit status: 0 done; 1 failed; 2 wrong usage; 3 the broker is unreachable",
    )
    parser.add_version()
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text)
    commands.choices.update(parsers or {})
    return parser
