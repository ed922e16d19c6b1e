"""Sign messages with a private key."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.settings import WrongSetting
from broker.signing.key_files import UnsafeFile, read_file, write_new
from schemas import InvalidMessage, Job, Pause, Signature
from schemas.orders.signature import HEADER, Signatures, key_id, signed_bytes, write_signatures

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from schemas import Cancellation, ChannelList, Manifest, Rollout, Schedule, ScheduleRemoval

    Order = Job | Cancellation | Pause
    """Messages that agents obey."""

    Signable = Order | Schedule | ScheduleRemoval | Rollout | Manifest | ChannelList
    """What is signed: orders, plans from which orders are made later, and what points serve."""


class Signer:
    """Sign messages with one key."""

    def __init__(self, name: str, key: "SigningKey") -> None:
        self.name = name
        self._key = key
        public = bytes(key.verify_key)
        self.public_text = base64.b64encode(public).decode()
        self._id = key_id(public)

    @classmethod
    def load(cls, path: Path | None) -> Self | None:
        """Read the private key in the file of `PCM_SIGNING_KEY`; None without a file.

        Raises:
            WrongSetting: the key cannot be used; the message says why.
        """
        if path is None:
            return None
        from nacl.signing import SigningKey  # needed only to sign

        from broker.signing.private_key import PrivateKey

        try:
            private = PrivateKey.read(read_file(path, private=True))
        except UnsafeFile as error:
            raise WrongSetting(f"PCM_SIGNING_KEY: {error}") from error
        except InvalidMessage as error:
            text = f"PCM_SIGNING_KEY: {path}: is not a private key of pcm keygen: {error}"
            raise WrongSetting(text) from None  # without the cause, which may contain the key
        return cls(private.name, SigningKey(base64.b64decode(private.seed)))

    def sign(self, message: "Signable", body: bytes | None = None) -> Signature:
        """Return the signature of a message; `body`: the bytes to send, by default its own."""
        signed = self._key.sign(bytes_to_sign(message, message.body() if body is None else body))
        text = base64.b64encode(signed.signature).decode()
        return Signature(name=self.name, key=self._id, signature=text)


def bytes_to_sign(message: "Signable", body: bytes) -> bytes:
    """Return the bytes that a signature of a message covers.

    They include the routing keys, but not for a cancellation: that names its job.
    """
    keys: tuple[str, ...] = ()
    if isinstance(message, Job):
        keys = topology.routing_keys(message)
    elif isinstance(message, Pause):
        keys = (topology.pause_key(message.workstation),)
    return signed_bytes(message.kind, keys, body)


def signature_headers(signatures: Signatures) -> HeadersType:
    """Return the message header of signatures; none without signatures."""
    return {HEADER: write_signatures(signatures)} if signatures else {}


def make_key(name: str, path: Path) -> Signer:
    """Create a private key in a new file; return its signer.

    Raises:
        UnsafeFile: the file exists, or cannot be written.
    """
    from nacl.signing import SigningKey

    from broker.signing.private_key import PrivateKey

    key = SigningKey.generate()
    private = PrivateKey(name=name, seed=base64.b64encode(bytes(key)).decode())
    write_new(path, private.body().decode() + "\n", 0o600)
    return Signer(name, key)
