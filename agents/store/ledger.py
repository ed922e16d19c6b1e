"""An agent's durable record, an SQLite file: many changes at once, on the disk before it is said.

The event loop makes the changes, which costs it less than handing them to a thread would: for
each of its statements that would wait for the loop. A thread waits for the disk. What is asked
for meanwhile goes into the next transaction together, so that nothing waits for the disk once
per job when it can wait once per batch.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agents.store.repair import is_damage, open_ledger
from agents.store.state_folder import StateError
from agents.store.threads import Threads
from agents.store.transaction import JobRecord, LedgerMetadata, Transaction, entries
from broker.log import get_logger

_T = TypeVar("_T")
_log = get_logger()

_RETRY_PAUSE = 1.0
_BATCH = 1000
_BUSY = 100  # milliseconds for which another writer, which there should not be, is waited for


@dataclass(frozen=True)
class _Asked:
    change: Callable[[Transaction], Any]
    future: "asyncio.Future[Any]"


@dataclass(frozen=True)
class _Transaction:
    asked: list[_Asked]
    results: list[Any]
    stored: "asyncio.Future[None]"


class Ledger:
    """The ledger, open for writing by one process."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StateError: that is not possible, or it is no ledger of this program.
        """
        self.path = path
        self._database = open_ledger(path)
        self._database.execute(f"PRAGMA busy_timeout = {_BUSY}")
        self._tables = Transaction(self._database)
        self._asked: list[_Asked] = []
        self._batch = _BATCH
        self._working = False  # on a transaction, or about to begin one
        self._storing: _Transaction | None = None
        self._failing = False
        self._closed = False
        try:
            self._disk = Threads(1, "store")
        except StateError:
            self._database.close()
            raise

    def commit(self, change: Callable[[Transaction], _T]) -> "asyncio.Future[_T]":
        """Make a change in the next transaction; the result comes once it is on the disk.

        Changes are made in the order in which they were asked for. Where the disk cannot take
        them (it is full, say) they are tried again until it can.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._asked.append(_Asked(change, future))
        if not self._working:  # what else this turn of the loop asks for goes along
            self._working = True
            loop.call_soon(self._transact)
        return future

    def load(self) -> tuple[LedgerMetadata, list[JobRecord]]:
        """Return its story, and the entries that are open. For the start, before any commit."""
        return self._tables.life(), self._tables.open()

    def close(self) -> None:
        """Finish what was asked and close the file."""
        self._closed = True
        self._disk.finish()
        if self._storing is not None:
            if self._storing.stored.exception() is None:
                _answer(self._storing.asked, self._storing.results)
            else:
                self._undo(self._storing.asked)
        try:
            results = self._change(self._asked)
            self._database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            results = [error] * len(self._asked)
        _answer(self._asked, results)
        self._database.close()

    def _transact(self) -> None:
        """Make the changes that were asked for, and have them stored."""
        if self._closed:
            return
        asked, self._asked = self._asked[: self._batch], self._asked[self._batch :]
        if not asked:
            self._working, self._batch = False, _BATCH
            return
        before = self._database.total_changes
        try:
            results = self._change(asked)
            if self._database.total_changes == before:  # it was only read
                self._database.execute("COMMIT")
                self._go_on(asked, results)
                return
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            self._failed(asked, error)
            return
        stored = self._disk.call(self._store)
        self._storing = _Transaction(asked, results, stored)
        stored.add_done_callback(self._stored)

    def _change(self, asked: list[_Asked]) -> list[Any]:
        self._database.execute("BEGIN IMMEDIATE")
        return [one.change(self._tables) for one in asked]

    def _store(self) -> None:
        self._database.execute("COMMIT")

    def _stored(self, stored: "asyncio.Future[None]") -> None:
        if self._closed or self._storing is None:
            return
        transaction, self._storing = self._storing, None
        if error := stored.exception():
            self._failed(transaction.asked, error)
            return
        if self._failing:
            self._failing = False
            _log.info("ledger.recovered", path=str(self.path))
        self._go_on(transaction.asked, transaction.results)

    def _go_on(self, asked: list[_Asked], results: list[Any]) -> None:
        _answer(asked, results)
        # After whoever gets an answer has asked for more: that goes along.
        asyncio.get_running_loop().call_soon(self._transact)

    def _failed(self, asked: list[_Asked], error: BaseException) -> None:
        if isinstance(error, sqlite3.OperationalError):  # the disk is full, say
            if not self._failing:
                self._failing = True
                _log.error("ledger.failing", path=str(self.path), reason=str(error))
            self._undo(asked)
            asyncio.get_running_loop().call_later(_RETRY_PAUSE, self._transact)
            return
        self._undo([])
        results: list[BaseException] = [error]
        if is_damage(error):
            text = f"{self.path}: {error}; the next start sets it aside"
            results = [StateError(text)] * len(asked)
        elif len(asked) > 1:  # the others' changes are made all the same, each by itself
            self._asked[:0], self._batch = asked, 1
            asked, results = [], []
        self._go_on(asked, results)

    def _undo(self, again: list[_Asked]) -> None:
        """Leave the transaction, and ask for some of its changes again."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._asked[:0] = again


def _answer(asked: list[_Asked], results: list[Any]) -> None:
    for one, result in zip(asked, results, strict=True):
        if one.future.done():  # whoever asked was cancelled
            continue
        if isinstance(result, BaseException):
            one.future.set_exception(result)
        else:
            one.future.set_result(result)


def read(path: Path) -> list[JobRecord]:
    """Return all entries of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(path, lambda database: list(entries(database, "ORDER BY received_at, id")))


def read_life(path: Path) -> LedgerMetadata:
    """Return the story of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(path, lambda database: Transaction(database).life())


def _read(path: Path, look: Callable[[sqlite3.Connection], _T]) -> _T:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            return look(database)
    except (sqlite3.Error, ValueError) as error:
        raise StateError(f"{path}: {error}; the agent's next start mends it") from error
