"""Tables: a line a row, and on a terminal none that is wider than it."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_GAP = "  "
_CUT = "…"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: what stands above it.
        rank: the higher, the sooner it is left out on a narrow terminal; 0 never is.
        least: how many characters it keeps where it is cut; None: it is not cut.
        right: whether it is one of figures.
    """

    name: str
    rank: int = 0
    least: int | None = None
    right: bool = False


class Cell(NamedTuple):
    """A cell that is shorter on a terminal."""

    whole: str
    short: str


def printable(text: str) -> str:
    """Return text that does nothing to a terminal: what is not printable is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def lines(
    columns: Sequence[Column], rows: Iterable[Iterable[object]], room: int | None = None
) -> Iterator[str]:
    """Yield the heads of columns and a line for each row; what is empty is a dash.

    With `room`, a line has so many characters at most: the least important columns are left out,
    and long cells are cut. Without, a line has all.
    """
    cells = [[_text(cell, short=room is not None) for cell in row] for row in rows]
    cells.insert(0, [column.name.upper() for column in columns])
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    kept = list(range(len(columns)))
    if room is not None:
        empty = {at for at in kept if all(row[at] == "-" for row in cells[1:])}
        kept = _kept(columns, widths, room, empty)
        _narrow(columns, widths, kept, room)
    for row in cells:
        padded = (_padded(row[at], widths[at], right=columns[at].right) for at in kept)
        line = _GAP.join(padded).rstrip()
        yield line if room is None else _cut(line, room)


def _text(cell: object, *, short: bool) -> str:
    if isinstance(cell, Cell):
        cell = cell.short if short else cell.whole
    return printable(str("-" if cell in (None, "") else cell))


def _kept(
    columns: Sequence[Column], widths: Sequence[int], room: int, empty: set[int]
) -> list[int]:
    """Return the places of the columns for which there is room, those that tell least left out."""
    kept = list(range(len(columns)))
    while sum(_least(columns[at], widths[at]) for at in kept) + _gaps(kept) > room:
        others = [at for at in kept if columns[at].rank]
        if not others:
            break
        kept.remove(max(others, key=lambda at: (at in empty, columns[at].rank)))
    return kept


def _narrow(columns: Sequence[Column], widths: list[int], kept: list[int], room: int) -> None:
    """Make columns narrower until all are in the room, always the widest of those that may be."""
    while sum(widths[at] for at in kept) + _gaps(kept) > room:
        may = [at for at in kept if widths[at] > _least(columns[at], widths[at])]
        if not may:
            return
        widths[max(may, key=lambda at: widths[at])] -= 1


def _least(column: Column, width: int) -> int:
    return width if column.least is None else min(width, max(column.least, len(column.name)))


def _gaps(kept: Sequence[int]) -> int:
    return len(_GAP) * (len(kept) - 1)


def _padded(text: str, width: int, *, right: bool) -> str:
    text = _cut(text, width)
    blank = " " * (width - _width(text))
    return blank + text if right else text + blank


def _cut(text: str, width: int) -> str:
    """Return text of so many characters at most; one that is longer ends in an ellipsis."""
    if _width(text) <= width:
        return text
    text = text[:width]  # it may be very long
    while text and _width(text) >= width:
        text = text[:-1]
    return text + _CUT


def _width(text: str) -> int:
    """Return how many places a terminal needs for text."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )
