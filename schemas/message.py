"""The base of all messages: a version, reading and writing."""

import base64
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import to_json

from schemas.errors import PcmError

MAJOR = 1
BODY_LIMIT = 1024 * 1024
"""The greatest size of a message, in bytes."""

_MAX_ERROR_LENGTH = 300


class InvalidMessage(PcmError, ValueError):
    """A message is invalid; the text names the field and the valid values."""


_CURRENT_VERSION = f"{MAJOR}.0"


def _check_version(text: str) -> str:
    if text == _CURRENT_VERSION:  # the usual case
        return text
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise ValueError('must be MAJOR.MINOR, such as "1.0"')
    if int(major) != MAJOR:
        raise ValueError(f"major version {major} is not supported; {MAJOR} is")
    return text


Version = Annotated[
    str,
    AfterValidator(_check_version),
    WithJsonSchema({"type": "string", "pattern": rf"^{MAJOR}\.\d+$"}),
]


def _to_json(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        encoded = value["base64"]
        if not isinstance(encoded, str):
            raise ValueError("base64: must be text")
        return base64.b64decode(encoded, validate=True)
    return value


Data = Annotated[
    bytes,
    BeforeValidator(_from_json),
    PlainSerializer(_to_json, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"base64": {"type": "string"}}},
            ]
        }
    ),
]
"""Bytes; in JSON a string if they are UTF-8, else {"base64": ...}."""


class Message(BaseModel):
    """An immutable message. Unknown fields are errors, unless `read` is tolerant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version = _CURRENT_VERSION

    @classmethod
    def read(cls, body: bytes | str, *, tolerant: bool = False) -> Self:
        """Read a message from JSON.

        `tolerant` ignores unknown fields, for messages of a newer minor version.

        Raises:
            InvalidMessage: the body is not JSON, or not a message of this class.
        """
        try:
            return cls.model_validate_json(body, extra="ignore" if tolerant else "forbid")
        except ValidationError as error:
            raise InvalidMessage(explain(error)) from error
        except Exception as error:
            # Any other error, too: an untrusted body must not stop its reader.
            raise InvalidMessage(f"cannot be read: {error}") from error

    def body(self) -> bytes:
        """Return the message as JSON."""
        return to_json(self, exclude_none=True)


def explain(error: ValidationError) -> str:
    """Return the first error as one line that begins with the field's name."""
    first: Any = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    return (f"{field}: " if field else "") + cause(first) + (f" (and {more} more)" if more else "")


def cause(details: Any) -> str:
    """Return the text of one of pydantic's errors as one line."""
    error = details.get("ctx", {}).get("error")
    text = str(error) if isinstance(error, ValueError) else details["msg"]
    if details["type"] == "extra_forbidden":
        text = "no such field"
    if len(text) > _MAX_ERROR_LENGTH:  # it repeats the value
        text = text[:_MAX_ERROR_LENGTH] + "..."
    return str(text)
