"""Asking back before something is done that cannot be undone."""

import sys

from broker.cli.command_line import WrongUse


def check_askable(command: str) -> None:
    """Refuse a command that has to ask back where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise WrongUse(f"{command}: say --yes: there is no terminal to ask back on")


def agreed(question: str) -> bool:
    """Ask the user; return whether the answer is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    print("pcm: nothing was done", file=sys.stderr)
    return False
