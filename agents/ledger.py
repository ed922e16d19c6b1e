"""An agent's durable record: the jobs it accepted, what became of them, what it has to report.

One thread writes. What is asked of it while it writes goes into the next transaction together,
so that nothing waits for the disk once per job when it can wait once per batch.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from agents.state import StateError
from schemas import Job, Report, State, WallClock
from schemas.times import Moment

_T = TypeVar("_T")
_log = structlog.get_logger()

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    body BLOB NOT NULL,
    received_at REAL NOT NULL,
    state TEXT NOT NULL,
    open INTEGER NOT NULL,
    shown_at REAL,
    until REAL,
    cancelled TEXT,
    changed_at REAL NOT NULL,
    final BLOB
) STRICT;
CREATE INDEX open_jobs ON jobs (id) WHERE open;
CREATE INDEX changed_jobs ON jobs (changed_at);
CREATE TABLE cancellations (
    job_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    received_at REAL NOT NULL
) STRICT;
CREATE TABLE refusals (
    job_id TEXT PRIMARY KEY,
    received_at REAL NOT NULL
) STRICT;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE bindings (
    routing_key TEXT PRIMARY KEY
) STRICT;
"""
_RETRY_PAUSE = 1.0
_BATCH = 1000


@dataclass(frozen=True)
class Entry:
    """A job as an agent knows it. Times are seconds since the epoch.

    Attributes:
        state: the last thing that this agent reported of it.
        open: whether this agent may still have something to do with it.
        shown_at: when it was first offered to the user.
        until: when a postponement ends.
        cancelled: why it was cancelled; None if it was not.
        final: the final report, if this agent made it.
    """

    job: Job
    received_at: float
    state: State = State.RECEIVED
    open: bool = True
    shown_at: float | None = None
    until: float | None = None
    cancelled: str | None = None
    changed_at: float = 0.0
    final: Report | None = None

    @property
    def offer_at(self) -> float:
        """When the job may first be seen."""
        return _seconds(self.job.offer_at, self.received_at)

    @property
    def mandatory_at(self) -> float | None:
        """When it runs, wanted or not; None for an optional job."""
        return None if self.job.mandatory_at is None else _seconds(self.job.mandatory_at, 0)

    @property
    def expires_at(self) -> float:
        """When it is too late to start it."""
        return _seconds(self.job.expires_at, float("inf"))


def _seconds(moment: Moment | None, default: float) -> float:
    if moment is None:
        return default
    return (moment.instant() if isinstance(moment, WallClock) else moment).timestamp()


@dataclass(frozen=True)
class Pending:
    """A report that the broker has not confirmed."""

    sequence: int
    state: State
    body: bytes


class Tables:
    """The ledger within one transaction; only the writing thread uses it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def accept(self, job: Job, now: float) -> Entry | bool:
        """Take in a job.

        Returns:
            The new entry; True if it is known; False if its id is another job's.
        """
        digest = job.digest()
        row = self._database.execute("SELECT digest FROM jobs WHERE id = ?", (job.id,)).fetchone()
        if row is not None:
            return bool(row[0] == digest)
        if self._database.execute("SELECT 1 FROM refusals WHERE job_id = ?", (job.id,)).fetchone():
            return False  # it has its final report
        withdrawn = self._database.execute(
            "SELECT reason FROM cancellations WHERE job_id = ?", (job.id,)
        ).fetchone()
        entry = Entry(job, now, cancelled=withdrawn[0] if withdrawn else None, changed_at=now)
        self._database.execute(
            "INSERT INTO jobs (id, digest, body, received_at, state, open, cancelled, changed_at)"
            " VALUES (?, ?, ?, ?, ?, 1, ?, ?)",
            (job.id, digest, job.body(), now, entry.state, entry.cancelled, now),
        )
        return entry

    def save(self, entry: Entry) -> None:
        """Write an entry's present state."""
        self._database.execute(
            "UPDATE jobs SET state = ?, open = ?, shown_at = ?, until = ?, cancelled = ?,"
            " changed_at = ?, final = ? WHERE id = ?",
            (
                entry.state,
                entry.open,
                entry.shown_at,
                entry.until,
                entry.cancelled,
                entry.changed_at,
                entry.final.body() if entry.final else None,
                entry.job.id,
            ),
        )

    def knows(self, job_id: str) -> bool:
        """Whether a job of this id was accepted, or refused."""
        query = "SELECT 1 FROM jobs WHERE id = ?1 UNION SELECT 1 FROM refusals WHERE job_id = ?1"
        return self._database.execute(query, (job_id,)).fetchone() is not None

    def remember_cancellation(self, job_id: str, reason: str, now: float) -> None:
        """Keep a cancellation for the job that may come after it."""
        self._database.execute(
            "INSERT INTO cancellations VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (job_id, reason, now),
        )

    def refused(self, job_id: str, now: float) -> None:
        """Keep that a job of this id was refused: nothing more is made of the id."""
        self._database.execute(
            "INSERT INTO refusals VALUES (?, ?) ON CONFLICT DO NOTHING", (job_id, now)
        )

    def report(self, report: Report) -> None:
        """Store a report, to be sent until the broker has confirmed it."""
        self._database.execute(
            "INSERT INTO outbox (state, body) VALUES (?, ?)", (report.state, report.body())
        )

    def pending(self, limit: int) -> list[Pending]:
        """Return the oldest reports that are not confirmed."""
        rows = self._database.execute(
            "SELECT sequence, state, body FROM outbox ORDER BY sequence LIMIT ?", (limit,)
        )
        return [Pending(sequence, State(state), body) for sequence, state, body in rows]

    def confirmed(self, sequence: int) -> None:
        """Drop the reports up to one: the broker has them."""
        self._database.execute("DELETE FROM outbox WHERE sequence <= ?", (sequence,))

    def bindings(self) -> set[str]:
        """Return the routing keys that the agent's queue was bound by."""
        return {key for (key,) in self._database.execute("SELECT routing_key FROM bindings")}

    def bound(self, keys: Iterable[str]) -> None:
        """Remember the routing keys that the agent's queue is bound by."""
        self._database.execute("DELETE FROM bindings")
        self._database.executemany("INSERT INTO bindings VALUES (?)", [(key,) for key in keys])


@dataclass(frozen=True)
class _Asked:
    change: Callable[[Tables], Any]
    future: "asyncio.Future[Any]"

    def resolve(self, result: Any) -> None:
        """Hand over the result, or the error; from the writing thread."""

        def hand_over() -> None:
            if self.future.done():  # whoever asked was cancelled
                return
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.future.get_loop().call_soon_threadsafe(hand_over)


class Ledger:
    """The ledger, open for writing by one process."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StateError: that is not possible, or it is no ledger of this program.
        """
        self.path = path
        try:
            self._database = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"PCM_STATE_DIR: {path}: {error}") from error
        self._gathered: list[_Asked] = []
        self._asked: queue.SimpleQueue[list[_Asked] | None] = queue.SimpleQueue()
        self._failing = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

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

    def load(self) -> list[Entry]:
        """Return the entries that are open. For the agent's start, before the first commit."""
        return list(_entries(self._database, "WHERE open ORDER BY received_at, id"))

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
            except sqlite3.OperationalError as error:
                if not self._failing:
                    self._failing = True
                    _log.error("ledger.failing", path=str(self.path), reason=str(error))
                if not self._closing.wait(_RETRY_PAUSE):
                    continue
                results = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                if len(batch) > 1:  # the others' changes are made all the same
                    for asked in batch:
                        self._transact(tables, [asked])
                    return
                results = [error]
            for asked, result in zip(batch, results, strict=True):
                asked.resolve(result)
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
    """Return all entries of a ledger that another process may be writing."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
        return list(_entries(database, "ORDER BY received_at, id"))


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # a commit is on the disk, not on its way
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        database.close()
        raise StateError(
            f"{path}: the ledger has version {version}, this program reads {SCHEMA_VERSION}"
        )
    return database


def _entries(database: sqlite3.Connection, where: str) -> Iterator[Entry]:
    columns = "body, received_at, state, open, shown_at, until, cancelled, changed_at, final"
    for row in database.execute(f"SELECT {columns} FROM jobs {where}"):  # noqa: S608 - our own
        body, received_at, state, is_open, shown_at, until, cancelled, changed_at, final = row
        yield Entry(
            job=Job.read(body, tolerant=True),
            received_at=received_at,
            state=State(state),
            open=bool(is_open),
            shown_at=shown_at,
            until=until,
            cancelled=cancelled,
            changed_at=changed_at,
            final=Report.read(final, tolerant=True) if final else None,
        )
