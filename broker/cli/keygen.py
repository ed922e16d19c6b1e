"""`pcm keygen`: create a key pair for signing jobs."""

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
        help="create a key pair for signing jobs",
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
    from broker.signing.key_files import UnsafeFile, write_new
    from broker.signing.signer import make_key

    public = arguments.out.with_name(f"{arguments.name}.pub")
    if public == arguments.out:
        raise WrongUse(f"--out: {public} is the file of the public key; give another name")
    _key(arguments, "A" * 43 + "=")  # check the options before a key is created
    for path in (arguments.out, public):
        if path.exists() or path.is_symlink():
            raise Wrong(f"{path}: exists already; nothing was created")
    try:
        signer = make_key(arguments.name, arguments.out)
        key = _key(arguments, signer.public_text)
        fields = {"kind": key.kind, **key.model_dump(mode="json", exclude_defaults=True)}
        write_new(public, json.dumps(fields) + "\n", 0o644)
    except UnsafeFile as error:
        raise Wrong(str(error)) from error
    print(f"{arguments.out}: the private key; keep it secret")
    print(f"{public}: the public key {key.id}; copy it into folders of trusted keys")
    return DONE


def _key(arguments: argparse.Namespace, public: str) -> "TrustedKey":
    from pydantic import ValidationError

    from schemas import TrustedKey, explain

    fields: dict[str, Any] = {
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
        return TrustedKey.model_validate(fields)
    except ValidationError as error:
        field, colon, text = explain(error).partition(":")
        options = {"targets": "target", "variables": "variable", "commands": "command"}
        name = field.partition(".")[0]
        raise WrongUse(f"--{options.get(name, name).replace('_', '-')}{colon}{text}") from error


def _moment(option: str, text: str | None) -> datetime | None:
    from schemas import WallClock
    from schemas.times import parse_moment

    if text is None:
        return None
    try:
        moment = parse_moment(text, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise WrongUse(f"{option}: {error}") from error
    if isinstance(moment, WallClock):
        raise WrongUse(f"{option}: {text!r}: give a time zone; workstation clocks are not allowed")
    return moment
