"""Findings: what is wrong, how severe it is, and its remedy."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from schemas.text import listed

_NAMED = 5


class Severity(StrEnum):
    """The severity of a finding; the worst first."""

    UNSAFE = "unsafe"
    WILL_BREAK = "will break"
    HINT = "hint"


@dataclass(frozen=True)
class Finding:
    """The finding of a check.

    Attributes:
        severity: its severity.
        check: the name of the check, for programs.
        text: what is wrong.
        remedy: how to repair it.
    """

    severity: Severity
    check: str
    text: str
    remedy: str


def named(names: Collection[str]) -> str:
    """Return the first names, and the number of the others."""
    return listed(sorted(names), _NAMED)
