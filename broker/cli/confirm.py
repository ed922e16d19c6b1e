"""Ask for confirmation before an action that cannot be undone."""

import sys

from broker.cli.command_line import UsageError


def require_terminal(command: str) -> None:
    """Refuse a command that needs confirmation where stdin is no terminal."""
    if not sys.stdin.isatty():
        raise UsageError(f"{command}: give --yes: there is no terminal to confirm on")


def confirm(question: str) -> bool:
    """Ask the user; return whether the answer is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    print("pcm: nothing was done", file=sys.stderr)
    return False
