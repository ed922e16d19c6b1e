"""`pcm keygen`: a pair of keys, one to sign with and one to be trusted."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, Parser, Wrong, WrongUse
from broker.cli.session import name

if TYPE_CHECKING:
    from schemas import TrustedKey


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
    from broker.signing.key_files import UnsafeFile, write_new
    from broker.signing.signer import make_key

    public = arguments.out.with_name(f"{arguments.name}.pub")
    if public == arguments.out:
        raise WrongUse(f"--out: {public} is where the public key goes; give another name")
    _key(arguments, "A" * 43 + "=")  # what is wrong in the options is told before a key is made
    for path in (arguments.out, public):
        if path.exists() or path.is_symlink():
            raise Wrong(f"{path}: is there already; nothing was made")
    try:
        signer = make_key(arguments.name, arguments.out)
        key = _key(arguments, signer.public_text)
        told = {"kind": key.kind, **key.model_dump(mode="json", exclude_defaults=True)}
        write_new(public, json.dumps(told) + "\n", 0o644)
    except UnsafeFile as error:
        raise Wrong(str(error)) from error
    print(f"{arguments.out}: the private key; keep it to yourself")
    print(f"{public}: the public key {key.id}; it goes into folders of trusted keys")
    return DONE


def _key(arguments: argparse.Namespace, public: str) -> "TrustedKey":
    from pydantic import ValidationError

    from schemas import TrustedKey, explain

    given: dict[str, Any] = {
        "name": arguments.name,
        "key": public,
        "targets": arguments.target or (),
        "contexts": (arguments.context,) if arguments.context else (),
        "commands": arguments.commands or (),
        "variables": arguments.variable or (),
        "shell": not arguments.no_shell,
        "not_before": _moment("--not-before", arguments.not_before),
        "not_after": _moment("--not-after", arguments.not_after),
    }
    try:
        return TrustedKey.model_validate(given)
    except ValidationError as error:
        field, colon, text = explain(error).partition(":")
        option = {"targets": "target", "variables": "variable", "commands": "command"}
        word = field.partition(".")[0]
        raise WrongUse(f"--{option.get(word, word).replace('_', '-')}{colon}{text}") from error


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
