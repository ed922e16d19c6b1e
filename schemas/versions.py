"""Versions of packages, and their one order."""

import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

_PATTERN = r"[0-9](?:[0-9A-Za-z.+~:!-]{0,62}[0-9A-Za-z.+~])?"
_VERSION = re.compile(_PATTERN)
# A version of PEP 440 in its canonical form, as the names of wheels contain it.
_PYTHON = re.compile(
    r"(?:(\d+)!)?(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?(\+[a-z0-9.]+)?"
)
_ZEROS = re.compile(r"^(\d+(?:\.\d+)*?)(?:\.0+)+(?![.\d])")
_RUNS = re.compile(r"([^0-9]*)([0-9]*)")
_BEFORE_THE_END = -1
_AFTER_LETTERS = 256

_Part = tuple[tuple[int, ...] | int, ...]
VersionKey = tuple[int, _Part, _Part]


def check_version(text: str) -> str:
    """Return the version of a package.

    Raises:
        ValueError: the text does not compare with versions.
    """
    if not _VERSION.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a version: begin with a digit, then use up to 63 letters,"
            " digits and . + ~ : ! -, with no hyphen at the end"
        )
    plain = _as_debian(text)
    epoch, colon, rest = plain.partition(":")
    if "!" in plain or ":" in rest or (colon and not (epoch.isdecimal() and rest[:1].isdecimal())):
        raise ValueError(
            f"{text!r} does not compare: write an epoch as Debian (1:2.0) or as Python (1!2.0)"
        )
    return text


PackageVersion = Annotated[
    str,
    AfterValidator(check_version),
    WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN}$"}),
]


@lru_cache(maxsize=10_000)
def version_key(text: str) -> VersionKey:
    """Return the sort key of a version.

    All versions are compared by Debian's rule (deb-version(7)), with two additions. Zeros at the
    end of the release do not count: 1.0 equals 1.0.0. In a version of PEP 440's canonical form,
    `1.0rc1` is read as `1.0~rc1`, `1.0.dev2` as `1.0~~dev2`, and `1.0.post3` as `1.0-3`. So the
    order is total, and it is PEP 440's for Python's public versions, but for `.post0`, which
    equals none.
    """
    plain = _as_debian(text)
    epoch, colon, rest = plain.partition(":")
    if not colon:
        epoch, rest = "0", plain
    upstream, hyphen, revision = rest.rpartition("-")
    if not hyphen:
        upstream, revision = rest, ""
    return int(epoch), _part(upstream), _part(revision)


def _as_debian(text: str) -> str:
    if match := _PYTHON.fullmatch(text):
        epoch, release, pre, pre_number, post, dev, local = match.groups(default="")
        text = (
            (epoch and f"{epoch}:")
            + release
            + (pre and f"~{pre}{pre_number}")
            + (post and f"-{post}")
            + (dev and f"~~dev{dev}")
            + local
        )
    epoch, colon, rest = text.rpartition(":")
    return epoch + colon + _ZEROS.sub(r"\1", rest)


def _part(text: str) -> _Part:
    """Return the key of an upstream version or a revision: texts and numbers by turns.

    The last text is empty, so that `1~` is less than `1`, and `1` less than `1a`.
    """
    key: list[tuple[int, ...] | int] = []
    for letters, digits in _RUNS.findall(text or "0"):
        key.append((*map(_order, letters), 0))
        if letters or digits:
            key.append(int(digits or 0))
    return tuple(key)


def _order(char: str) -> int:
    if char == "~":
        return _BEFORE_THE_END
    return ord(char) if char.isalpha() else ord(char) + _AFTER_LETTERS
