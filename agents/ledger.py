"""An agent's durable record, an SQLite file: written by one thread, many changes at once.

One thread writes. What is asked of it while it writes goes into the next transaction together,
so that nothing waits for the disk once per job when it can wait once per batch.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agents.salvage import is_damage, open_ledger
from agents.state import StateError
from agents.tables import Entry, Life, Tables, entries
from agents.threads import Answers
from broker.log import get_logger

_T = TypeVar("_T")
_log = get_logger()

_RETRY_PAUSE = 1.0
_BATCH = 1000


@dataclass(frozen=True)
class _Asked:
    change: Callable[[Tables], Any]
    future: "asyncio.Future[Any]"


class Ledger:
    """The ledger, open for writing by one process."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StateError: that is not possible, or it is no ledger of this program.
        """
        self.path = path
        self._database = open_ledger(path)
        self._gathered: list[_Asked] = []
        self._asked: queue.SimpleQueue[list[_Asked] | None] = queue.SimpleQueue()
        self._answers = Answers()
        self._failing = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        try:
            self._writer.start()
        except RuntimeError as error:
            self._database.close()
            raise StateError(f"{path}: no room for a thread: {error}") from error

    def commit(self, change: Callable[[Tables], _T]) -> "asyncio.Future[_T]":
        """Make a change in the next transaction; the result comes once it is on the disk.

        Changes are made in the order in which they were asked for. Where the disk cannot take
        them (it is full, say) they are tried again until it can.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        if not self._gathered:  # what else this round of the loop asks for goes along
            loop.call_soon(self._hand_over)
        self._gathered.append(_Asked(change, future))
        return future

    def load(self) -> tuple[Life, list[Entry]]:
        """Return its story, and the entries that are open. For the start, before any commit."""
        tables = Tables(self._database)
        return tables.life(), tables.open()

    def close(self) -> None:
        """Finish what was asked and close the file."""
        self._closing.set()
        self._hand_over()
        self._asked.put(None)
        self._writer.join()
        self._database.close()

    def _hand_over(self) -> None:
        if self._gathered:
            self._asked.put(self._gathered)
            self._gathered = []

    def _write(self) -> None:
        tables = Tables(self._database)
        closing = False
        while not closing:
            batch: list[_Asked] = []
            item = self._asked.get()
            while item is not None:
                batch += item
                if len(batch) >= _BATCH or self._asked.empty():
                    break
                item = self._asked.get()
            closing = item is None
            self._transact(tables, batch)

    def _transact(self, tables: Tables, batch: list[_Asked]) -> None:
        while batch:
            try:
                results = self._attempt(tables, batch)
            except sqlite3.OperationalError as error:  # the disk is full, say
                if not self._failing:
                    self._failing = True
                    _log.error("ledger.failing", path=str(self.path), reason=str(error))
                if not self._closing.wait(_RETRY_PAUSE):
                    continue
                results = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                if is_damage(error):
                    text = f"{self.path}: {error}; the next start sets it aside"
                    results = [StateError(text)] * len(batch)
                elif len(batch) > 1:  # the others' changes are made all the same
                    for asked in batch:
                        self._transact(tables, [asked])
                    return
                else:
                    results = [error]
            futures = [asked.future for asked in batch]
            self._answers.give(zip(futures, results, strict=True))
            return

    def _attempt(self, tables: Tables, batch: list[_Asked]) -> list[Any]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            results = [asked.change(tables) for asked in batch]
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        if self._failing:
            self._failing = False
            _log.info("ledger.recovered", path=str(self.path))
        return results


def read(path: Path) -> list[Entry]:
    """Return all entries of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(path, lambda database: list(entries(database, "ORDER BY received_at, id")))


def read_life(path: Path) -> Life:
    """Return the story of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(path, lambda database: Tables(database).life())


def _read(path: Path, look: Callable[[sqlite3.Connection], _T]) -> _T:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            return look(database)
    except (sqlite3.Error, ValueError) as error:
        raise StateError(f"{path}: {error}; the agent's next start mends it") from error
