"""Signatures of orders: the signed bytes, and the header that carries the signatures."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.message import InvalidMessage, Message, explain
from schemas.names import Name, Text

HEADER = "signatures"
"""The AMQP header with a message's signatures."""

_DOMAIN = b"package-command-manager order 1\0"  # excludes signatures made for other purposes
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_MAX_SIGNATURES = 8
LONGEST_HEADER = 8192
"""The greatest length of the header, in characters."""


def _base64_of(size: int) -> AfterValidator:
    def check(text: str) -> str:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != size:
            raise ValueError(f"is not {size} bytes in base64")
        return text

    return AfterValidator(check)


PublicKey = Annotated[str, _base64_of(_KEY_BYTES)]
"""A public key, in base64."""

# Points of low order: everyone can compute what is encrypted for them, so libsodium refuses them.
_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


def _is_usable(text: str) -> str:
    point = int.from_bytes(base64.b64decode(text), "little") % 2**255  # the highest bit is ignored
    if point % _PRIME in _LOW_ORDER:
        raise ValueError("is no key that secrets can be sealed for")
    return text


SealingKey = Annotated[PublicKey, AfterValidator(_is_usable)]
"""A public key for secrets, in base64."""


def key_id(key: bytes) -> str:
    """Return the id of a public key, as signatures contain it."""
    return hashlib.sha256(key).hexdigest()[:16]


class Signature(BaseModel):
    """An Ed25519 signature. The signer's name is informative; only the key is proof."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    key: str = Field(pattern=r"^[0-9a-f]{16}$", description="the id of the public key")
    signature: Annotated[str, _base64_of(_SIGNATURE_BYTES)]

    def bytes(self) -> bytes:
        """Return the raw signature."""
        return base64.b64decode(self.signature)


Signatures = tuple[Signature, ...]
_SIGNATURES: TypeAdapter[Signatures] = TypeAdapter(
    Annotated[Signatures, Field(max_length=_MAX_SIGNATURES)]
)


def write_signatures(signatures: Iterable[Signature]) -> str:
    """Return the header for signatures; "" if there are none."""
    items = tuple(signatures)
    return _SIGNATURES.dump_json(items).decode() if items else ""


def read_signatures(header: Any) -> Signatures:
    """Read a message's signatures from its header; none if there is no header.

    Raises:
        InvalidMessage: the header is not a list of signatures.
    """
    if header in (None, ""):
        return ()
    if not isinstance(header, str) or len(header) > LONGEST_HEADER:
        raise InvalidMessage(f"{HEADER}: is not a list of signatures")
    try:
        return _SIGNATURES.validate_json(header)
    except ValidationError as error:
        raise InvalidMessage(f"{HEADER}: {explain(error)}") from error


def signed_bytes(kind: str, routing_keys: Sequence[str], body: bytes) -> bytes:
    """Return the signed bytes of an order: its kind, its routing keys, and its body.

    Each part is prefixed with its length, so that no two orders have the same bytes.
    """
    keys = b"".join(_part(key.encode()) for key in routing_keys)
    return _DOMAIN + _part(kind.encode()) + _part(keys) + _part(body)


def _part(data: bytes) -> bytes:
    return len(data).to_bytes(8) + data


class SignedJob(Message):
    """A job that is not sent yet: its signed bytes, and their signatures."""

    kind: Literal["signed_job"] = "signed_job"
    text: Text = Field(description="the job's JSON, exactly as it was signed")
    signatures: Signatures = Field(default=(), max_length=_MAX_SIGNATURES)

    @property
    def job_body(self) -> bytes:
        """The body of the job's message."""
        return self.text.encode()

    def with_signature(self, signature: Signature) -> Self:
        """Return a copy with one more signature."""
        return self.model_copy(update={"signatures": (*self.signatures, signature)})
