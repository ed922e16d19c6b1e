"""Names of workstations, groups and users, and the targets made of them."""

import hashlib
import re
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

# No dots (they separate the words of a routing key) and no regular expression syntax
# (names are part of the broker's permission patterns).
_NAME = re.compile(r"[a-z0-9_-]{1,63}")


@lru_cache(maxsize=100_000)  # each record that is read has some
def check_name(text: str) -> str:
    """Return the name in lower case.

    Raises:
        ValueError: it is not 1 to 63 ASCII letters, digits, '-' or '_'.
    """
    name = text.lower()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a name: use 1 to 63 letters, digits, '-' or '_'")
    return name


Name = Annotated[
    str,
    AfterValidator(check_name),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,63}$"}),
]


_USER_BYTES = 255  # the system's limit
_WORD_LENGTH = 120  # with it, the names of queues, logins and folders are within their limits
_HASH_DIGITS = 40
_ESCAPED = re.compile(rb"[^a-z0-9_-]")
_ESCAPE = re.compile(rb":([0-9a-f]{2})")


def check_user(text: str) -> str:
    """Return a login name; unlike other names, it can have any letters and is case-sensitive.

    Raises:
        ValueError: no system has such a login name.
    """
    if (
        not 1 <= len(text.encode(errors="replace")) <= _USER_BYTES
        or not text.isprintable()
        or text != text.strip()
        or not {":", "/"}.isdisjoint(text)
    ):
        raise ValueError(
            f"{text!r} is not a login name: use 1 to {_USER_BYTES} bytes, without ':' and '/'"
        )
    return text


User = Annotated[str, AfterValidator(check_user)]
"""A login name of the workstation's system."""


@lru_cache(maxsize=100_000)
def user_word(user: str) -> str:
    """Return a login name as a word of queues, routing keys, broker logins and folders.

    The word consists of lower-case ASCII letters, digits, '-', '_' and ':'. Plain names stay as
    they are; each other byte, also a capital letter, is `:` and two hexadecimal digits. A word
    that is too long is shortened: its end is `::` and a hash of the name. No two names have the
    same word; a word with ':' is no name, and its own word.
    """
    if ":" in user:
        return user
    name = user.encode()
    word = _ESCAPED.sub(lambda match: b":%02x" % ord(match[0]), name).decode()
    if len(word) <= _WORD_LENGTH:
        return word
    digest = hashlib.sha256(name).hexdigest()[:_HASH_DIGITS]
    return f"{word[: _WORD_LENGTH - 2 - _HASH_DIGITS]}::{digest}"


def user_of_word(word: str) -> str | None:
    """Return the login name of a word; a shortened word itself; None if it is no word."""
    if "::" in word:
        return word
    try:
        user = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), word.encode()).decode()
    except ValueError:
        return None
    return user if user and ":" not in user and user_word(user) == word else None


def check_text(text: str) -> str:
    """Return text that is valid as a program's argument and in JSON.

    Raises:
        ValueError: it has a NUL, or bytes that are not UTF-8.
    """
    if "\0" in text:
        raise ValueError("a NUL character cannot be passed to a program")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{text!a} is not UTF-8") from None
    return text


Text = Annotated[str, AfterValidator(check_text)]


class Target(BaseModel):
    """A job's target: everyone, a group, or a workstation.

    In JSON it is one string: `all`, `group:NAME` or `workstation:NAME`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "type": "string",
            "pattern": "^(all|(group|workstation):[A-Za-z0-9_-]{1,63})$",
        },
    )

    scope: Literal["all", "group", "workstation"]
    name: Name | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `all`, `group:NAME` or `workstation:NAME`; raise ValueError for other text."""
        return cls.model_validate(text)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        scope, _, name = value.partition(":")
        if value == "all":
            return {"scope": scope}
        if scope in {"group", "workstation"}:
            return {"scope": scope, "name": check_name(name)}
        raise ValueError(f"{value!r} is not a target: use all, group:NAME or workstation:NAME")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.scope == "all") == (self.name is not None):
            raise ValueError("a group or a workstation has a name, everyone has none")
        return self

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return self.scope if self.name is None else f"{self.scope}:{self.name}"


everyone = Target(scope="all")


def group(name: str) -> Target:
    """Return the target of all workstations in a group."""
    return Target(scope="group", name=name)


def workstation(name: str) -> Target:
    """Return the target of one workstation."""
    return Target(scope="workstation", name=name)
