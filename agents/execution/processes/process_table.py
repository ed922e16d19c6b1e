"""The table of this machine's processes, as /proc shows it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agents.platforms import NO_FILES

RLIMIT_LOCKS = 10
"""The resource limit that is the mark of a command's processes: see `process_tree`."""
_LIMIT_LINE = "Max file locks"


@contextmanager
def unless_ended() -> Iterator[None]:
    """Suppress the errors for a process that has ended."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_FILES:
            raise


@dataclass(frozen=True)
class ProcessEntry:
    """A line of the process table."""

    state: str
    parent: int
    session: int
    started_at: int

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended; a zombie has."""
        return self.state in "ZX"


def process_table() -> dict[int, ProcessEntry]:
    """Return all processes of this machine.

    Raises:
        OSError: the limit of open files is reached.
    """
    table: dict[int, ProcessEntry] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - faster, and this blocks the event loop
        if name.isdecimal():
            with unless_ended():
                table[int(name)] = process_entry(int(name))
    return table


def process_entry(pid: int) -> ProcessEntry:
    """Return a process's line of the process table.

    Raises:
        OSError: it has ended, or the limit of open files is reached.
    """
    with open(f"/proc/{pid}/stat", encoding="latin-1") as file:  # noqa: PTH123 - faster
        fields = file.read().rpartition(")")[2].split()
    return ProcessEntry(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def descendants_of(pid: int) -> Iterator[int]:
    """Yield the living descendants of a process, parents first, without those of ended ones."""
    with unless_ended():
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - faster
            with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123 - faster
                for child in map(int, file.read().split()):
                    yield child
                    yield from descendants_of(child)


def mark_of(pid: int) -> int | None:
    """Return the mark of a process; None if it has none.

    Raises:
        OSError: it has ended, or the limit of open files is reached.
    """
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:  # noqa: PTH123 - faster
        for line in file:
            if line.startswith(_LIMIT_LINE):
                soft, hard, *_ = line.removeprefix(_LIMIT_LINE).split()
                limit = soft if hard == "unlimited" else hard
                return None if limit == "unlimited" else int(limit)
    return None
