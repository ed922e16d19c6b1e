"""Parse command lines and map errors to exit statuses; shared by `pcm` and `pcm-agent`."""

import argparse
import errno
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from broker.settings import WrongSetting
from schemas.errors import PcmError
from schemas.text import did_you_mean, nearest

DONE, FAILED, USAGE, UNREACHABLE = range(4)

_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
_ROW = re.compile(r" +\S.*?  +")
_MIN_TEXT_WIDTH = 24  # characters
_INDENT_BELOW = 6


class CommandError(PcmError):
    """The command failed; the text is shown to the user."""

    status = FAILED


class UsageError(CommandError):
    """An option or a file is invalid; the text names it."""

    status = USAGE


class NoSuchJob(CommandError):
    """The stream has no record of a job with this id."""


class BrokerUnreachable(CommandError):
    """The broker is unreachable; the text gives the reason."""

    status = UNREACHABLE

    def __str__(self) -> str:
        return f"the broker is unreachable: {super().__str__()}"


@contextmanager
def argument_errors() -> Iterator[None]:
    """Convert ValueError into argparse's error for an argument."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class HelpWithTables(argparse.HelpFormatter):
    """Wrap help texts at the terminal's width; indented lines are rows of a table."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_wrap(indent + line, width) for line in text.splitlines())


def _wrap(line: str, width: int) -> str:
    """Wrap a line; in a table's row, wrap the right column below itself."""
    row = _ROW.match(line)
    left_column = row[0] if row else ""
    if not row:
        indent = 0
    elif width - len(left_column) >= _MIN_TEXT_WIDTH:
        indent = len(left_column)
    else:
        indent = _INDENT_BELOW
    return textwrap.fill(
        line[len(left_column) :],
        width,
        initial_indent=left_column,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class _Version(argparse.Action):
    """Print the version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('package-command-manager')}")
        parser.exit()


class _Help(argparse._HelpAction):  # noqa: SLF001 - documented as the action "help"
    """Print the help and exit, once all arguments are parsed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, Parser)  # noqa: S101 - it alone has this action
        parser.asks_for_help = True


class Parser(argparse.ArgumentParser):
    """Parse arguments; report an error in one line and accept no abbreviated options.

    Attributes:
        asks_for_help: whether -h or --help is among the arguments.
    """

    def __init__(self, *, add_help: bool = True, **options: Any) -> None:
        options.setdefault("formatter_class", HelpWithTables)
        super().__init__(allow_abbrev=False, add_help=False, **options)
        self.asks_for_help = False
        if add_help:
            self.add_argument(
                "-h",
                "--help",
                action=_Help,
                default=argparse.SUPPRESS,
                help="show this help message and exit",
            )
        # Otherwise argparse takes the value -1h for an option and names the wrong one.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def add_version(self) -> None:
        """Add the option `--version`."""
        self.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments; print the help if it is asked for, unless a command is in the way."""
        parsed, unrecognized = super().parse_known_args(args, namespace)
        if self.asks_for_help and not unrecognized:
            self.error("")
        if self.asks_for_help:
            # -h is the command's, whose -- was forgotten: nothing was sent, which is an error.
            self.asks_for_help = False
            words = shlex.join(unrecognized)
            remedy = ": put -- before the command" if self.get_default("takes_command") else ""
            self.error(f"unrecognized arguments: {words}{remedy}")
        return parsed, unrecognized

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, or the help if it is asked for, and exit."""
        if self.asks_for_help:
            self.print_help()
            self.exit()
        if choice := _INVALID_CHOICE.search(message):
            message += did_you_mean(nearest(choice[1], re.findall(r"[\w-]+", choice[2])))
        self.exit(USAGE, f"{self.prog}: {message.removeprefix('argument ')}\n")


def run(program: str, work: Callable[[], int]) -> int:
    """Run a command; print its errors on stderr, one a line; return the exit status."""
    try:
        status = work()
        sys.stdout.flush()
    except (CommandError, WrongSetting) as error:
        for line in str(error).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return error.status if isinstance(error, CommandError) else USAGE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{program}: standard output: {error.strerror}", file=sys.stderr)
        os._exit(FAILED)  # a normal exit would write the buffer again
    return status
