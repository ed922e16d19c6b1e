"""`pcm keygen`: create a key pair for signing jobs."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from broker.cli.command_line import DONE, CommandError, Parser, UsageError
from broker.cli.session import name
from broker.signing.key_files import UnsafeFile
from broker.signing.key_pair import WrongKey, create_key_pair
from schemas import WallClock
from schemas.times import parse_moment

# Options with another name than their field.
_OPTIONS = {"path": "out", "targets": "target", "variables": "variable", "commands": "command"}


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    keygen = commands.add_parser(
        "keygen",
        description="Creates the private key FILE for signing (PCM_SIGNING_KEY=FILE), and in the"
        " same folder the public key NAME.pub for folders of trusted keys (PCM_TRUSTED_KEYS). The"
        " options restrict what the key may order. They are stored in NAME.pub; each folder's copy"
        " decides for its own readers.",
    )
    add = keygen.add_argument
    add("name", metavar="NAME", type=name, help="the key's owner")
    add("--out", metavar="FILE", type=Path, required=True, help="must not exist yet")
    restrict = keygen.add_argument_group("what it may order (default: anything)").add_argument
    restrict("--target", metavar="T", action="append", help="only jobs for the target T")
    restrict("--context", choices=["background", "foreground"], help="only jobs of this context")
    restrict(
        "--command",
        metavar="P",
        dest="commands",
        action="append",
        help="only this program, as jobs name it; * matches any text; repeat for more",
    )
    restrict(
        "--variable",
        metavar="K",
        action="append",
        help="with --command: environment variable that jobs may set; repeat for more",
    )
    restrict("--no-shell", action="store_true", help="no shell scripts")
    restrict("--not-before", metavar="T", help="valid from this time, such as 2026-12-01T00:00Z")
    restrict("--not-after", metavar="T", help="valid until this time, such as +365d")
    keygen.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        pair = create_key_pair(
            arguments.name,
            arguments.out,
            targets=arguments.target or (),
            contexts=(arguments.context,) if arguments.context else (),
            commands=arguments.commands or (),
            variables=arguments.variable or (),
            shell=not arguments.no_shell,
            not_before=_moment("--not-before", arguments.not_before),
            not_after=_moment("--not-after", arguments.not_after),
        )
    except WrongKey as error:
        field, colon, text = str(error).partition(":")
        field = field.partition(".")[0]
        option = _OPTIONS.get(field, field).replace("_", "-")
        raise UsageError(f"--{option}{colon}{text}") from error
    except UnsafeFile as error:
        raise CommandError(str(error)) from error
    print(f"{pair.private}: the private key; keep it secret")
    print(f"{pair.public}: the public key {pair.key.id}; copy it into folders of trusted keys")
    return DONE


def _moment(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = parse_moment(text, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option}: {error}") from error
    if isinstance(moment, WallClock):
        raise UsageError(
            f"{option}: {text!r}: give a time zone; workstation clocks are not allowed"
        )
    return moment
