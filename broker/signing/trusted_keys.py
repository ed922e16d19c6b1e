"""The folder of public keys that are trusted, and whose signatures count by it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from broker.signing.key_files import UnsafeFile, check_folder, read_file
from broker.signing.signer import to_sign
from schemas import InvalidMessage, Signature
from schemas.signature import Signatures

if TYPE_CHECKING:
    from broker.signing.signer import Signable
    from schemas import TrustedKey


class Verdict(NamedTuple):
    """A signature, the trusted key that made it, and else why it does not count."""

    signature: Signature
    key: "TrustedKey | None"
    reason: str = ""


class Keyring:
    """Public keys that are trusted."""

    def __init__(self, keys: "Iterable[TrustedKey]" = (), problems: Iterable[str] = ()) -> None:
        self.keys = {key.id: key for key in keys}
        self.problems = tuple(problems)
        """What is wrong with files from which nothing is trusted, a line each."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the keys of a folder: its files NAME.pub.

        Raises:
            UnsafeFile: somebody else could put files into it.
        """
        from schemas import TrustedKey

        check_folder(folder)
        keys: dict[str, TrustedKey] = {}
        problems = []
        for path in key_files(folder):
            try:
                key = TrustedKey.read(read_file(path))
            except UnsafeFile as error:
                problems.append(str(error))
            except InvalidMessage as error:
                problems.append(f"{path}: is no public key of pcm keygen: {error}")
            else:
                if key.id in keys:  # else one file could widen what another narrows
                    problems.append(f"{path}: another file has the same key")
                else:
                    keys[key.id] = key
        return cls(keys.values(), problems)

    def judge(self, asked: "Signable", body: bytes, signatures: Signatures) -> Iterator[Verdict]:
        """Yield of each signature whose it is, or why it counts for nothing."""
        signed = to_sign(asked, body) if signatures else b""
        for one in signatures:
            key = self.keys.get(one.key)
            if key is None:
                yield Verdict(one, None, f"the key {one.key} ({one.name}) is not trusted")
            elif not _verifies(key, signed, one):
                yield Verdict(one, None, f"the signature of {key.name} is not of this message")
            else:
                yield Verdict(one, key)


def key_files(folder: Path) -> list[Path]:
    """Return the files of a folder that should hold public keys.

    Raises:
        UnsafeFile: it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".pub")
    except OSError as error:
        raise UnsafeFile(f"{folder}: {error.strerror}") from error


def _verifies(key: "TrustedKey", signed: bytes, signature: Signature) -> bool:
    from nacl.exceptions import BadSignatureError  # who trusts no keys does not load it
    from nacl.signing import VerifyKey

    try:
        VerifyKey(key.bytes()).verify(signed, signature.bytes())
    except (BadSignatureError, ValueError):
        return False
    return True
