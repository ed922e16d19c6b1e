"""Create key pairs: a private key for signing, and the public key with its restrictions."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from broker.signing.key_files import UnsafeFile, write_new
from schemas.errors import PcmError

if TYPE_CHECKING:
    from schemas import Context, Target, TrustedKey

_SOME_KEY = "A" * 43 + "="


class WrongKey(PcmError, ValueError):
    """The name or a restriction of a key is invalid; the message names it."""


class KeyPair(NamedTuple):
    """The files of a new key pair, and its public key."""

    private: Path
    public: Path
    key: "TrustedKey"


def create_key_pair(
    name: str,
    path: str | Path,
    *,
    targets: "Iterable[Target | str]" = (),
    contexts: "Iterable[Context | str]" = (),
    commands: Iterable[str] = (),
    variables: Iterable[str] = (),
    shell: bool = True,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> KeyPair:
    """Create a private key, and its public key in the file NAME.pub of the same folder.

    Args:
        name: the key's owner.
        path: the file of the private key (`PCM_SIGNING_KEY`).
        targets: only jobs for these targets; default: all.
        contexts: only jobs of these contexts; default: both.
        commands: only these programs, as jobs name them; `*` matches any text; default: all.
        variables: with `commands`: the environment variables that jobs may set.
        shell: whether jobs may be shell scripts.
        not_before: the key is valid from this time.
        not_after: the key is valid until this time.

    Raises:
        WrongKey: the name or a restriction is invalid; nothing was created.
        UnsafeFile: a file exists already, or cannot be written.
    """
    from broker.signing.signer import make_key

    private = Path(path)
    public = private.with_name(f"{name}.pub")
    if public == private:
        raise WrongKey(f"path: {public} is the file of the public key; give another name")
    restrictions = {
        "targets": tuple(targets),
        "contexts": tuple(contexts),
        "commands": tuple(commands),
        "variables": tuple(variables),
        "shell": shell,
        "not_before": not_before,
        "not_after": not_after,
    }
    _trusted_key(name, _SOME_KEY, restrictions)  # check the restrictions before a key is created
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise UnsafeFile(f"{file}: exists already; nothing was created")
    key = _trusted_key(name, make_key(name, private).public_text, restrictions)
    fields = {"kind": key.kind, **key.model_dump(mode="json", exclude_defaults=True)}
    write_new(public, json.dumps(fields) + "\n", 0o644)
    return KeyPair(private, public, key)


def _trusted_key(name: str, public_key: str, restrictions: dict[str, object]) -> "TrustedKey":
    from pydantic import ValidationError

    from schemas import TrustedKey, explain

    try:
        return TrustedKey.model_validate({"name": name, "key": public_key, **restrictions})
    except ValidationError as error:
        raise WrongKey(explain(error)) from error
