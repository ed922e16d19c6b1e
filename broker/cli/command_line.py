"""What both programs share: how options are read, and what their exit status says."""

import argparse
import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from broker.settings import WrongSetting
from schemas.errors import PcmError

DONE, FAILED, USAGE, OUT_OF_REACH = range(4)

_ROW = re.compile(r" +\S.*?  +")
_LEAST_RIGHT = 24  # characters
_BELOW = 6


class Wrong(PcmError):
    """What was asked cannot be done, and why; the text is for the user."""

    status = FAILED


class WrongUse(Wrong):
    """An option or a file is wrong; the text names it."""

    status = USAGE


class OutOfReach(Wrong):
    """The broker cannot be reached; the text says why."""

    status = OUT_OF_REACH

    def __str__(self) -> str:
        return f"the broker is out of reach: {super().__str__()}"


@contextmanager
def argument_errors() -> Iterator[None]:
    """Turn what is wrong with an argument (ValueError) into argparse's error, in its words."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Help(argparse.HelpFormatter):
    """Help in the terminal's width: lines are filled, and indented ones are a table's rows."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_filled(indent + line, width) for line in text.splitlines())


def _filled(line: str, width: int) -> str:
    """Return a line in a width; of a row of a table, what stands right is filled at its place."""
    row = _ROW.match(line)
    left = row[0] if row else ""
    if not row:
        beside = 0
    elif width - len(left) >= _LEAST_RIGHT:
        beside = len(left)
    else:
        beside = _BELOW
    return textwrap.fill(
        line[len(left) :],
        width,
        initial_indent=left,
        subsequent_indent=" " * beside,
        break_long_words=False,
        break_on_hyphens=False,
    )


class _Version(argparse.Action):
    """Print the version, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('package-command-manager')}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Help)
        super().__init__(allow_abbrev=False, **options)
        # Else -1h would be an option, and the error not about what it is given to.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def add_version(self) -> None:
        """Add the option that tells the version."""
        self.add_argument("--version", action=_Version, nargs=0, help="print the version, and exit")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and exit."""
        self.exit(USAGE, f"{self.prog}: {message.removeprefix('argument ')}\n")


def run(program: str, work: Callable[[], int]) -> int:
    """Do a command's work; return the exit status. Errors are lines on stderr, one for each."""
    try:
        status = work()
        sys.stdout.flush()
    except (Wrong, WrongSetting) as error:
        for line in str(error).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return error.status if isinstance(error, Wrong) else USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has enough
        sys.stderr.close()
        return DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{program}: standard output: {error.strerror}", file=sys.stderr)
        os._exit(FAILED)  # or Python tries to write it again
    return status
