"""Print completion scripts for shells: `pcm completion` and `pcm-agent completion`."""

import argparse
from collections.abc import Iterator

from broker.cli.command_line import DONE, Parser

SHELLS = ("bash", "zsh", "fish")


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    completion = commands.add_parser(
        "completion",
        description="Prints a script with which a shell completes the commands and options of pcm."
        " pcm-agent completion prints that of pcm-agent.",
        epilog="to load it, write:\n"
        "  source <(pcm completion bash)   in ~/.bashrc\n"
        "  source <(pcm completion zsh)    in ~/.zshrc, after compinit\n"
        "  pcm completion fish | source    in ~/.config/fish/config.fish",
    )
    add_argument(completion)
    completion.set_defaults(run=_run)


def add_argument(parser: Parser) -> None:
    """Add the argument that names the shell."""
    parser.add_argument("shell", metavar="|".join(SHELLS), choices=SHELLS, help="the shell")


def print_script(parser: Parser, shell: str) -> int:
    """Print the script that completes a program's command lines; return the exit status."""
    import shtab

    kinds = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "DIR|FILE": shtab.FILE}
    for action in _arguments(parser):
        if action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return DONE


def _run(arguments: argparse.Namespace) -> int:
    from broker.cli.main import full_parser

    return print_script(full_parser(), arguments.shell)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands; shorten the commands' descriptions."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for listed in action._choices_actions:  # noqa: SLF001
                command = action.choices[listed.dest]
                command.description = listed.help  # shells show it in one line
                yield from _arguments(command)
