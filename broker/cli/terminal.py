"""What is printed for people: nothing in it does anything to their terminal."""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from broker.cli.table import Cell, Column, lines, printable

__all__ = ["Cell", "Column", "print_table", "printable", "printable_lines"]


def printable_lines(text: str) -> str:
    """Return text of many lines that does nothing to a terminal; tabs stay as well."""
    return "\n".join(
        "\t".join(map(printable, line.removesuffix("\r").split("\t"))) for line in text.split("\n")
    )


def print_table(columns: Sequence[Column], rows: Iterable[Iterable[object]]) -> None:
    """Print rows under their columns: on a terminal as many as it has room for, elsewhere all."""
    is_terminal = sys.stdout.isatty()
    room = shutil.get_terminal_size().columns if is_terminal else None
    head, *others = lines(columns, rows, room)
    bold = is_terminal and os.environ.get("TERM", "dumb") != "dumb"
    print(f"\x1b[1m{head}\x1b[m" if bold else head)
    for line in others:
        print(line)
