"""What every message has: a kind, a version, and one way to be read."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import to_json

from schemas.errors import PcmError

MAJOR = 1
BODY_LIMIT = 1024 * 1024
"""Bytes that a message may have."""

_LONGEST_TEXT = 300


class InvalidMessage(PcmError, ValueError):
    """A message cannot be read; the text names the field and what would be right."""


_OURS = f"{MAJOR}.0"


def _check_version(text: str) -> str:
    if text == _OURS:  # of every message that is read
        return text
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise ValueError('must be MAJOR.MINOR, such as "1.0"')
    if int(major) != MAJOR:
        raise ValueError(f"major version {major} is not the {MAJOR} that is understood here")
    return text


Version = Annotated[
    str,
    AfterValidator(_check_version),
    WithJsonSchema({"type": "string", "pattern": rf"^{MAJOR}\.\d+$"}),
]


class Message(BaseModel):
    """An immutable message. Unknown fields are errors, unless `read` is told otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version = _OURS

    @classmethod
    def read(cls, body: bytes | str, *, tolerant: bool = False) -> Self:
        """Read a message from JSON.

        `tolerant` ignores unknown fields: agents read so what a newer minor version wrote.

        Raises:
            InvalidMessage: the body is no JSON or not such a message.
        """
        try:
            return cls.model_validate_json(body, extra="ignore" if tolerant else "forbid")
        except ValidationError as error:
            raise InvalidMessage(explain(error)) from error
        except Exception as error:
            # Whatever it is: who reads what others wrote must not stop at it.
            raise InvalidMessage(f"cannot be read: {error}") from error

    def body(self) -> bytes:
        """Return the message as JSON, as it goes over the wire."""
        return to_json(self, exclude_none=True)


def explain(error: ValidationError) -> str:
    """Return the first thing wrong in one line, with the field's name in front."""
    first: Any = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    return (f"{field}: " if field else "") + cause(first) + (f" (and {more} more)" if more else "")


def cause(found: Any) -> str:
    """Return in one line what is wrong, of one of the errors that pydantic lists."""
    error = found.get("ctx", {}).get("error")
    text = str(error) if isinstance(error, ValueError) else found["msg"]
    if found["type"] == "extra_forbidden":
        text = "no such field"
    if len(text) > _LONGEST_TEXT:  # it repeats what was given
        text = text[:_LONGEST_TEXT] + "..."
    return str(text)
