"""Read the folder of trusted public keys, and verify signatures by them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from broker.signing.key_files import UnsafeFile, check_folder, read_file
from broker.signing.signer import bytes_to_sign
from schemas import InvalidMessage, Signature
from schemas.orders.signature import Signatures

if TYPE_CHECKING:
    from broker.signing.signer import Signable
    from schemas import TrustedKey


class Verdict(NamedTuple):
    """A signature with the trusted key that made it, or the reason why it does not count."""

    signature: Signature
    key: "TrustedKey | None"
    reason: str = ""


class Keyring:
    """Trusted public keys."""

    def __init__(self, keys: "Iterable[TrustedKey]" = (), problems: Iterable[str] = ()) -> None:
        self.keys = {key.id: key for key in keys}
        self.problems = tuple(problems)
        """Files that are ignored, with the reason, a line each."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the keys of a folder, from its files NAME.pub.

        Raises:
            UnsafeFile: other users can change the folder.
        """
        from schemas import TrustedKey

        check_folder(folder)
        keys: dict[str, TrustedKey] = {}
        files: dict[str, list[Path]] = {}
        problems = []
        for path in key_files(folder):
            try:
                key = TrustedKey.read(read_file(path))
            except UnsafeFile as error:
                problems.append(str(error))
            except InvalidMessage as error:
                problems.append(f"{path}: is not a public key of pcm keygen: {error}")
            else:
                keys[key.id] = key
                files.setdefault(key.id, []).append(path)
        for key_id, (first, *others) in files.items():
            if others:  # their limits may differ: neither is trusted
                problems.append(f"{others[0]}: has the same key as {first}; remove one of them")
                del keys[key_id]
        return cls(keys.values(), problems)

    def verify(self, message: "Signable", body: bytes, signatures: Signatures) -> Iterator[Verdict]:
        """Yield for each signature its trusted key, or why it does not count."""
        signed = bytes_to_sign(message, body) if signatures else b""
        for one in signatures:
            key = self.keys.get(one.key)
            if key is None:
                yield Verdict(one, None, f"the key {one.key} ({one.name}) is not trusted")
            elif not _verifies(key, signed, one):
                yield Verdict(one, None, f"the signature of {key.name} is not of this message")
            else:
                yield Verdict(one, key)


def key_files(folder: Path) -> list[Path]:
    """Return the files NAME.pub of a folder.

    Raises:
        UnsafeFile: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".pub")
    except OSError as error:
        raise UnsafeFile(f"{folder}: {error.strerror}") from error


def _verifies(key: "TrustedKey", signed: bytes, signature: Signature) -> bool:
    from nacl.exceptions import BadSignatureError  # needed only with trusted keys
    from nacl.signing import VerifyKey

    try:
        VerifyKey(key.bytes()).verify(signed, signature.bytes())
    except (BadSignatureError, ValueError):
        return False
    return True
