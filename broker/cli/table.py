"""Lay out tables: one line a row, no line wider than the terminal."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_GAP = "  "
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: the JSON field's name, with spaces for underscores.
        rank: columns of a higher rank are left out first on a narrow terminal; 0: never.
        least: the width to which it may be cut; None: it is not cut.
        right: whether it is aligned right.
    """

    name: str
    rank: int = 0
    least: int | None = None
    right: bool = False


class Cell(NamedTuple):
    """A cell with a shorter text for terminals."""

    full: str
    short: str


def printable(text: str) -> str:
    """Return text with all unprintable characters escaped, so that it cannot control a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def lines(
    columns: Sequence[Column], rows: Iterable[Iterable[object]], max_width: int | None = None
) -> Iterator[str]:
    """Yield the column headers and a line for each row; an empty cell is a dash.

    With `max_width`, the least important columns are left out and long cells are cut until the
    lines fit.
    """
    cells = [[_text(cell, short=max_width is not None) for cell in row] for row in rows]
    cells.insert(0, [column.name.upper() for column in columns])
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    shown = list(range(len(columns)))
    if max_width is not None:
        empty = {at for at in shown if all(row[at] == "-" for row in cells[1:])}
        shown = _shown_columns(columns, widths, max_width, empty)
        _shrink(columns, widths, shown, max_width)
    for row in cells:
        padded = (_pad(row[at], widths[at], right=columns[at].right) for at in shown)
        line = _GAP.join(padded).rstrip()
        yield line if max_width is None else _cut(line, max_width)


def _text(cell: object, *, short: bool) -> str:
    if isinstance(cell, Cell):
        cell = cell.short if short else cell.full
    return printable(str("-" if cell in (None, "") else cell))


def _shown_columns(
    columns: Sequence[Column], widths: Sequence[int], max_width: int, empty: set[int]
) -> list[int]:
    """Return the indexes of the columns that fit; leave out empty and high-ranked ones first."""
    shown = list(range(len(columns)))
    while sum(_least(columns[at], widths[at]) for at in shown) + _gaps(shown) > max_width:
        candidates = [at for at in shown if columns[at].rank]
        if not candidates:
            break
        shown.remove(max(candidates, key=lambda at: (at in empty, columns[at].rank)))
    return shown


def _shrink(columns: Sequence[Column], widths: list[int], shown: list[int], max_width: int) -> None:
    """Narrow the widest column that may be cut, until the columns fit."""
    while sum(widths[at] for at in shown) + _gaps(shown) > max_width:
        candidates = [at for at in shown if widths[at] > _least(columns[at], widths[at])]
        if not candidates:
            return
        widths[max(candidates, key=lambda at: widths[at])] -= 1


def _least(column: Column, width: int) -> int:
    return width if column.least is None else min(width, max(column.least, len(column.name)))


def _gaps(shown: Sequence[int]) -> int:
    return len(_GAP) * (len(shown) - 1)


def _pad(text: str, width: int, *, right: bool) -> str:
    text = _cut(text, width)
    padding = " " * (width - _width(text))
    return padding + text if right else text + padding


def _cut(text: str, width: int) -> str:
    """Cut text to a width; text that was cut ends in an ellipsis."""
    if _width(text) <= width:
        return text
    text = text[:width]  # keeps the loop short for very long texts
    while text and _width(text) >= width:
        text = text[:-1]
    return text + _ELLIPSIS


def _width(text: str) -> int:
    """Return the number of terminal cells that text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )
