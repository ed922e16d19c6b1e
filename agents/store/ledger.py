"""An agent's durable record of its jobs: an SQLite file with batched transactions.

The event loop executes the statements: a thread would wait for the interpreter lock at each of
them. Another thread commits, which waits for the disk. Changes requested meanwhile share the next
transaction, so the disk is synced once per batch and not once per job.
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
from agents.store.threads import ThreadPool
from agents.store.transaction import JobRecord, LedgerMetadata, Transaction, select_job_records
from broker.log import get_logger

_T = TypeVar("_T")
_log = get_logger()

_RETRY_PAUSE = 1.0
_BATCH = 1000
_BUSY_TIMEOUT = 100  # milliseconds; there should be no other writer


@dataclass(frozen=True)
class _PendingChange:
    change: Callable[[Transaction], Any]
    future: "asyncio.Future[Any]"


@dataclass(frozen=True)
class _Committing:
    changes: list[_PendingChange]
    results: list[Any]
    committed: "asyncio.Future[None]"


class Ledger:
    """The ledger, open for writing by one process."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StateError: the file cannot be opened or created, or it is not a ledger.
        """
        self.path = path
        self._database = open_ledger(path)
        self._database.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
        self._transaction = Transaction(self._database)
        self._queued: list[_PendingChange] = []
        self._batch = _BATCH
        self._busy = False  # a transaction runs or is scheduled
        self._committing: _Committing | None = None
        self._failing = False
        self._closed = False
        try:
            self._thread = ThreadPool(1, "store")
        except StateError:
            self._database.close()
            raise

    def commit(self, change: Callable[[Transaction], _T]) -> "asyncio.Future[_T]":
        """Make a change in the next transaction; the future resolves once it is on the disk.

        Changes are made in the order of the calls. If the disk fails (it is full, for example),
        they are retried until it works.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._queued.append(_PendingChange(change, future))
        if not self._busy:  # other changes of this loop iteration join the transaction
            self._busy = True
            loop.call_soon(self._run_transaction)
        return future

    def load(self) -> tuple[LedgerMetadata, list[JobRecord]]:
        """Return the metadata and the open jobs; called at the start, before any commit."""
        return self._transaction.metadata(), self._transaction.open_records()

    def close(self) -> None:
        """Make the queued changes and close the file."""
        self._closed = True
        self._thread.join()
        if self._committing is not None:
            if self._committing.committed.exception() is None:
                _resolve(self._committing.changes, self._committing.results)
            else:
                self._roll_back(self._committing.changes)
        try:
            results = self._apply(self._queued)
            self._database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it becomes the exception of each future
            results = [error] * len(self._queued)
        _resolve(self._queued, results)
        self._database.close()

    def _run_transaction(self) -> None:
        """Make the queued changes and start the commit."""
        if self._closed:
            return
        changes, self._queued = self._queued[: self._batch], self._queued[self._batch :]
        if not changes:
            self._busy, self._batch = False, _BATCH
            return
        before = self._database.total_changes
        try:
            results = self._apply(changes)
            if self._database.total_changes == before:  # nothing was written
                self._database.execute("COMMIT")
                self._finish(changes, results)
                return
        except Exception as error:  # noqa: BLE001 - it becomes the exception of each future
            self._failed(changes, error)
            return
        committed = self._thread.submit(self._commit_to_disk)
        self._committing = _Committing(changes, results, committed)
        committed.add_done_callback(self._committed)

    def _apply(self, changes: list[_PendingChange]) -> list[Any]:
        self._database.execute("BEGIN IMMEDIATE")
        return [pending.change(self._transaction) for pending in changes]

    def _commit_to_disk(self) -> None:
        self._database.execute("COMMIT")

    def _committed(self, committed: "asyncio.Future[None]") -> None:
        if self._closed or self._committing is None:
            return
        transaction, self._committing = self._committing, None
        if error := committed.exception():
            self._failed(transaction.changes, error)
            return
        if self._failing:
            self._failing = False
            _log.info("ledger.recovered", path=str(self.path))
        self._finish(transaction.changes, transaction.results)

    def _finish(self, changes: list[_PendingChange], results: list[Any]) -> None:
        _resolve(changes, results)
        # Callers that now continue can add their next changes to the next transaction.
        asyncio.get_running_loop().call_soon(self._run_transaction)

    def _failed(self, changes: list[_PendingChange], error: BaseException) -> None:
        if isinstance(error, sqlite3.OperationalError):  # the disk is full, for example
            if not self._failing:
                self._failing = True
                _log.error("ledger.failing", path=str(self.path), reason=str(error))
            self._roll_back(changes)
            asyncio.get_running_loop().call_later(_RETRY_PAUSE, self._run_transaction)
            return
        self._roll_back([])
        results: list[BaseException] = [error]
        if is_damage(error):
            text = f"{self.path}: {error}; the next start sets the file aside"
            results = [StateError(text)] * len(changes)
        elif len(changes) > 1:  # retry each alone, so that only the failing change fails
            self._queued[:0], self._batch = changes, 1
            changes, results = [], []
        self._finish(changes, results)

    def _roll_back(self, requeued: list[_PendingChange]) -> None:
        """Roll the transaction back and queue some of its changes again."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._queued[:0] = requeued


def _resolve(changes: list[_PendingChange], results: list[Any]) -> None:
    for pending, result in zip(changes, results, strict=True):
        if pending.future.done():  # the caller was cancelled
            continue
        if isinstance(result, BaseException):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)


def read_ledger(path: Path) -> list[JobRecord]:
    """Return all jobs of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(
        path, lambda database: list(select_job_records(database, "ORDER BY received_at, id"))
    )


def read_metadata(path: Path) -> LedgerMetadata:
    """Return the metadata of a ledger that another process may be writing.

    Raises:
        StateError: it cannot be read.
    """
    return _read(path, lambda database: Transaction(database).metadata())


def _read(path: Path, query: Callable[[sqlite3.Connection], _T]) -> _T:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
            return query(database)
    except (sqlite3.Error, ValueError) as error:
        raise StateError(f"{path}: {error}; the agent's next start repairs it") from error
