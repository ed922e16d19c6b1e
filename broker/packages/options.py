"""The options of `pcm send` for a package's command and for a script that is sent along."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import UsageError
from broker.packages.session import load_keyring, load_points, package_errors

if TYPE_CHECKING:
    from broker.cli.command_line import Parser
    from schemas import Command, PackageReference

# Options of a command, which a package's command has itself.
_OF_COMMAND = (
    *("background", "timeout", "success_exit", "restart_exit", "user_input_required"),
    *("user_may_stop", "survives_agent", "leaves_processes", "rerun_interrupted", "platform"),
    *("cwd", "run_as", "shell", "script"),
)


def add_options(parser: "Parser") -> None:
    """Add the options to a command that makes a job."""
    add = parser.add_argument
    add(
        "--package",
        metavar="P",
        help="run a command of this package: NAME (highest version), NAME@VERSION or NAME@CHANNEL",
    )
    add(
        "--command",
        metavar="C",
        dest="package_command",
        help="with --package: the package's command (default: install)",
    )
    add("--script", metavar="FILE", help="send this program along, and run it; up to 256 KiB")


def check_options(arguments: argparse.Namespace) -> None:
    """Check that options go together.

    Raises:
        UsageError: they do not; the text names one.
    """
    if arguments.package is None:
        if arguments.package_command is not None:
            raise UsageError("--command: needs --package as well")
        if arguments.script is not None and (arguments.shell or arguments.cwd):
            option = "shell" if arguments.shell else "cwd"
            raise UsageError(f"--{option}: not with --script; leave out one of the two")
        return
    for name in _OF_COMMAND:
        if getattr(arguments, name, None):
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: the package's command has its own; leave it out")
    if arguments.argv:
        raise UsageError("COMMAND: not with --package; name the package's with --command")


def package_of(arguments: argparse.Namespace) -> "tuple[PackageReference, Command]":
    """Return the package of `--package`, and the command of `--command`.

    Raises:
        UsageError: there is no such version or command.
        CommandError: a distribution point or what it has is not as it should be.
    """
    from broker.packages.resolve import resolve_package

    command = arguments.package_command or "install"
    points, keyring = load_points(), load_keyring()
    with package_errors():
        resolved = resolve_package(arguments.package, command, points, keyring)
    return resolved.reference, resolved.command


def script_of(path: str, arguments: "list[str]") -> dict[str, Any]:
    """Return the fields of a command that runs a script.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        content = read_script(path)
    except OSError as error:
        raise UsageError(f"--script: {path}: {error.strerror or error}") from error
    return {"argv": (Path(path).name, *arguments), "script": content}


def read_script(path: str | Path) -> bytes:
    """Return the content of a script; of one that is too long, enough to see that.

    Raises:
        OSError: it is not a regular file, or cannot be read.
    """
    from schemas.orders.command import SCRIPT_LIMIT

    path = Path(path)
    if not path.is_file():
        path.stat()  # raises what is wrong
        raise IsADirectoryError(0, "is not a regular file")
    with path.open("rb") as file:
        return file.read(SCRIPT_LIMIT + 1)
