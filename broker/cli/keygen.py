"""`pcm keygen`: a pair of keys, one to sign with and one to be trusted."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from broker.cli.command_line import DONE, Parser, Wrong, WrongUse
from broker.cli.session import name

# Options with another name than their field.
_OPTIONS = {"path": "out", "targets": "target", "variables": "variable", "commands": "command"}


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    keygen = commands.add_parser(
        "keygen",
        help="make keys to sign jobs with",
        description="Makes a private key, FILE, to sign with (PCM_SIGNING_KEY=FILE), and beside it"
        " the public one, NAME.pub, for the folder of those who trust it (PCM_TRUSTED_KEYS). The"
        " options narrow what the key may order; they stand in NAME.pub, and count as they stand"
        " in each folder.",
    )
    add = keygen.add_argument
    add("name", metavar="NAME", type=name, help="whose it is")
    add("--out", metavar="FILE", type=Path, required=True, help="must not be there yet")
    narrow = keygen.add_argument_group("what it may order (default: anything)").add_argument
    narrow("--target", metavar="T", action="append", help="only of workstations that T means")
    narrow("--context", choices=["background", "foreground"], help="only such jobs")
    narrow(
        "--command",
        metavar="P",
        dest="commands",
        action="append",
        help="only this program, as jobs name it, where * stands for anything; again for more",
    )
    narrow(
        "--variable",
        metavar="K",
        action="append",
        help="with --command: environment variable that jobs may set; again for more",
    )
    narrow("--no-shell", action="store_true", help="no scripts for a shell")
    narrow("--not-before", metavar="T", help="valid from then on, such as 2026-12-01T00:00Z")
    narrow("--not-after", metavar="T", help="valid until then, such as +365d")
    keygen.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from broker.signing.key_files import UnsafeFile
    from broker.signing.key_pair import WrongKey, create_key_pair

    try:
        made = create_key_pair(
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
        raise WrongUse(f"--{option}{colon}{text}") from error
    except UnsafeFile as error:
        raise Wrong(str(error)) from error
    print(f"{made.private}: the private key; keep it secret")
    print(f"{made.public}: the public key {made.key.id}; copy it into folders of trusted keys")
    return DONE


def _moment(option: str, text: str | None) -> datetime | None:
    from schemas import WallClock
    from schemas.times import parse_moment

    if text is None:
        return None
    try:
        found = parse_moment(text, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise WrongUse(f"{option}: {error}") from error
    if isinstance(found, WallClock):
        raise WrongUse(f"{option}: {text!r}: a key is valid everywhere at once: give a zone")
    return found
