"""The content of a private key's file."""

from typing import Annotated, Literal

from pydantic import Field

from schemas import Message
from schemas.names import Name
from schemas.orders.signature import PublicKey


class PrivateKey(Message):
    """A private key, and the signer's name."""

    kind: Literal["private_key"] = "private_key"
    name: Name
    seed: Annotated[PublicKey, Field(repr=False)]  # of the same size
