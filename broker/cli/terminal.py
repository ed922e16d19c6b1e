"""Print tables and texts that cannot control the terminal."""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from broker.cli.table import Cell, Column, lines, printable

__all__ = ["Cell", "Column", "print_table", "printable", "printable_lines"]


def printable_lines(text: str) -> str:
    """Return text with unprintable characters escaped; keep its line ends and tabs."""
    return "\n".join(
        "\t".join(map(printable, line.removesuffix("\r").split("\t"))) for line in text.split("\n")
    )


def print_table(columns: Sequence[Column], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; on a terminal, fit it to the terminal's width."""
    is_terminal = sys.stdout.isatty()
    max_width = shutil.get_terminal_size().columns if is_terminal else None
    header, *body = lines(columns, rows, max_width)
    bold = is_terminal and os.environ.get("TERM", "dumb") != "dumb"
    print(f"\x1b[1m{header}\x1b[m" if bold else header)
    for line in body:
        print(line)
