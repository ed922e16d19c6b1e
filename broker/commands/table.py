"""Tables for people, on a terminal and elsewhere."""

import sys
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under the names of their columns."""
    clean = [[printable(cell) for cell in row] for row in rows]
    heads = [column.upper() for column in columns]
    if sys.stdout.isatty():
        _print_folded(heads, clean)
    else:
        _print_lines([heads, *clean])


def _print_lines(rows: Sequence[Sequence[str]]) -> None:
    """Print a row a line, and at once for very many."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_folded(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head in {"ID", "AT", "NAME"})
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def printable(text: str) -> str:
    """Return text that does nothing to a terminal: what is not printable is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
