"""What both programs share: how options are read, and what their exit status says."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from broker.settings import WrongSetting

DONE, FAILED, USAGE, OUT_OF_REACH = range(4)


class Wrong(Exception):
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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

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
