"""What is printed for people: nothing in it does anything to their terminal."""

import sys
from collections.abc import Collection, Iterable, Sequence


def printable(text: str) -> str:
    """Return text that does nothing to a terminal: what is not printable is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """Return text of many lines that does nothing to a terminal; tabs stay as well."""
    return "\n".join(
        "\t".join(map(printable, line.removesuffix("\r").split("\t"))) for line in text.split("\n")
    )


def print_table(
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    whole: Collection[str] = (),
    right: Collection[str] = (),
) -> None:
    """Print rows under their columns; what is empty is a dash.

    Args:
        columns: their names.
        rows: a cell for each column.
        whole: the columns that are not folded on a narrow terminal.
        right: the columns of figures.
    """
    cells = [[printable(str("-" if cell in (None, "") else cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_folded(columns, cells, whole, right)
    else:  # a row a line, and at once for very many
        _print_lines(columns, cells, right)


def _print_lines(columns: Sequence[str], rows: list[list[str]], right: Collection[str]) -> None:
    lines = [[column.upper() for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def _print_folded(
    columns: Sequence[str], rows: list[list[str]], whole: Collection[str], right: Collection[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.upper(),
            overflow="fold",
            no_wrap=column in whole,
            justify="right" if column in right else "left",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
