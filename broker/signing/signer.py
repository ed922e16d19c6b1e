"""Private keys, and what is signed with them."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.settings import WrongSetting
from broker.signing.key_files import UnsafeFile, read_file, write_new
from schemas import InvalidMessage, Job, Pause, Signature
from schemas.signature import HEADER, Signatures, key_id, signed_bytes, write_signatures

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from schemas import Cancellation, Rollout, Schedule, ScheduleRemoval

    Order = Job | Cancellation | Pause
    """What agents obey."""

    Signable = Order | Schedule | ScheduleRemoval | Rollout
    """What is signed: orders, and the plans of which others make orders later."""


class Signer:
    """Signs in the name of one key."""

    def __init__(self, name: str, key: "SigningKey") -> None:
        self.name = name
        self._key = key
        public = bytes(key.verify_key)
        self.public_text = base64.b64encode(public).decode()
        self._id = key_id(public)

    @classmethod
    def load(cls, path: Path | None) -> Self | None:
        """Read the private key that `PCM_SIGNING_KEY` names; None if it names none.

        Raises:
            WrongSetting: it cannot be used; the text says why.
        """
        if path is None:
            return None
        from nacl.signing import SigningKey  # who signs nothing does not load it

        from broker.signing.private_key import PrivateKey

        try:
            found = PrivateKey.read(read_file(path, private=True))
        except UnsafeFile as error:
            raise WrongSetting(f"PCM_SIGNING_KEY: {error}") from error
        except InvalidMessage as error:
            text = f"PCM_SIGNING_KEY: {path}: is no private key of pcm keygen: {error}"
            raise WrongSetting(text) from None  # not the cause: it may hold what is secret
        return cls(found.name, SigningKey(base64.b64decode(found.seed)))

    def sign(self, asked: "Signable", body: bytes | None = None) -> Signature:
        """Return our signature of what is asked, in the bytes in which it is sent."""
        signed = self._key.sign(to_sign(asked, asked.body() if body is None else body))
        text = base64.b64encode(signed.signature).decode()
        return Signature(name=self.name, key=self._id, signature=text)


def to_sign(asked: "Signable", body: bytes) -> bytes:
    """Return the bytes of which a signature of this is one.

    A cancellation has no keys in them: it is of one job, whichever way it comes.
    """
    keys: tuple[str, ...] = ()
    if isinstance(asked, Job):
        keys = topology.routing_keys(asked)
    elif isinstance(asked, Pause):
        keys = (topology.pause_key(asked.workstation),)
    return signed_bytes(asked.kind, keys, body)


def headers(signatures: Signatures) -> HeadersType:
    """Return the headers that tell signatures."""
    return {HEADER: write_signatures(signatures)} if signatures else {}


def make_key(name: str, path: Path) -> Signer:
    """Make a private key, and return who signs with it.

    Raises:
        UnsafeFile: the file is there, or cannot be written.
    """
    from nacl.signing import SigningKey

    from broker.signing.private_key import PrivateKey

    key = SigningKey.generate()
    private = PrivateKey(name=name, seed=base64.b64encode(bytes(key)).decode())
    write_new(path, private.body().decode() + "\n", 0o600)
    return Signer(name, key)
