"""What is wrong, how bad that is, and what to do about it."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from schemas.text import listed

_NAMED = 5


class Severity(StrEnum):
    """How bad it is; the worst first."""

    UNSAFE = "unsafe"
    WILL_BREAK = "will break"
    HINT = "hint"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: how bad it is.
        check: which check found it; one word, for programs.
        text: what is wrong.
        remedy: what ends it.
    """

    severity: Severity
    check: str
    text: str
    remedy: str


def named(names: Collection[str]) -> str:
    """Return some names in a sentence: the first few, and how many there are besides."""
    return listed(sorted(names), _NAMED)
