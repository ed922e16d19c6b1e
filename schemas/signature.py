"""Signatures of orders: what exactly is signed, and how signatures are told."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.message import InvalidMessage, Message, explain
from schemas.names import Name, Text

HEADER = "signatures"
"""The AMQP header in which a message's signatures stand."""

_DOMAIN = b"package-command-manager order 1\0"  # no signature for anything else is one for this
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_MOST = 8
LONGEST_HEADER = 8192
"""Characters that such a header may have."""


def _base64_of(size: int) -> AfterValidator:
    def check(text: str) -> str:
        try:
            found = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if len(found) != size:
            raise ValueError(f"is not {size} bytes in base64")
        return text

    return AfterValidator(check)


PublicKey = Annotated[str, _base64_of(_KEY_BYTES)]
"""A public key, in base64."""


def key_id(key: bytes) -> str:
    """Return the id of a public key, by which signatures name it."""
    return hashlib.sha256(key).hexdigest()[:16]


class Signature(BaseModel):
    """An Ed25519 signature. The name is what the signer goes by; only the key proves anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    key: str = Field(pattern=r"^[0-9a-f]{16}$", description="the id of the public key")
    signature: Annotated[str, _base64_of(_SIGNATURE_BYTES)]

    def bytes(self) -> bytes:
        """Return the signature itself."""
        return base64.b64decode(self.signature)


Signatures = tuple[Signature, ...]
_SIGNATURES: TypeAdapter[Signatures] = TypeAdapter(Annotated[Signatures, Field(max_length=_MOST)])


def write_signatures(signatures: Iterable[Signature]) -> str:
    """Return signatures as they stand in a header; nothing if there are none."""
    found = tuple(signatures)
    return _SIGNATURES.dump_json(found).decode() if found else ""


def read_signatures(header: Any) -> Signatures:
    """Read a message's signatures from its header; none where there is no header.

    Raises:
        InvalidMessage: it holds something else.
    """
    if header in (None, ""):
        return ()
    if not isinstance(header, str) or len(header) > LONGEST_HEADER:
        raise InvalidMessage(f"{HEADER}: is no list of signatures")
    try:
        return _SIGNATURES.validate_json(header)
    except ValidationError as error:
        raise InvalidMessage(f"{HEADER}: {explain(error)}") from error


def signed_bytes(kind: str, routing_keys: Sequence[str], body: bytes) -> bytes:
    """Return what is signed of an order: its kind, all its routing keys, and its very bytes.

    Each part stands behind its length: no two orders make the same bytes.
    """
    keys = b"".join(_part(key.encode()) for key in routing_keys)
    return _DOMAIN + _part(kind.encode()) + _part(keys) + _part(body)


def _part(data: bytes) -> bytes:
    return len(data).to_bytes(8) + data


class SignedJob(Message):
    """A job that is not sent yet, in the very bytes that were signed, and who signed it."""

    kind: Literal["signed_job"] = "signed_job"
    text: Text = Field(description="the job's JSON, letter by letter as it was signed")
    signatures: Signatures = Field(default=(), max_length=_MOST)

    @property
    def job_body(self) -> bytes:
        """The job's message, as it is to be sent."""
        return self.text.encode()

    def with_signature(self, signature: Signature) -> Self:
        """Return it with one signature more."""
        return self.model_copy(update={"signatures": (*self.signatures, signature)})
