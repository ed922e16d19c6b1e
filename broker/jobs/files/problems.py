"""Problems of files, and the places of values in them."""

from dataclasses import dataclass

from schemas.errors import PcmError

DEEPEST = 20  # a job has five levels
TOO_DEEP = f"is nested more than {DEEPEST} levels deep"

Place = tuple[str | int, ...]
"""Where a value is: the number of its document, then keys and indices."""


class Unreadable(PcmError):
    """The text cannot be read; `line` says where, if that is known."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file; the text says what would be right."""

    line: int | None
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


def path_of(place: Place) -> str:
    """Return a place as people write it, such as `jobs[1].command`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place[1:])
    return "".join(parts).removeprefix(".")
