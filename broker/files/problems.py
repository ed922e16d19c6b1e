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


class WrongFile(PcmError, ValueError):
    """A file is wrong; each line of the text names the file, line, field and remedy."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name = name
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(self._line, self.problems)))

    def _line(self, problem: Problem) -> str:
        place = f"{self.name}:{problem.line}" if problem.line else self.name
        return "".join(_visible(char) for char in f"{place}: {problem}")


def _visible(char: str) -> str:
    """Return a character as a line of text can show it."""
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
