"""The ledger's tables: the jobs that an agent accepted, what became of them, what it has to report.

`Transaction` is what can be asked and changed within one transaction; who runs the transactions is
the ledger's affair.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from schemas import Job, Pause, Report, State
from schemas.policy import JobStatus

MIGRATIONS = (
    """
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
""",
    """
ALTER TABLE jobs ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN process TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN supersedes TEXT;
ALTER TABLE jobs ADD COLUMN created_at REAL NOT NULL DEFAULT 0;
UPDATE jobs SET starts = 1 WHERE state = 'started';
CREATE INDEX superseding_jobs ON jobs (supersedes, created_at) WHERE supersedes IS NOT NULL;
CREATE TABLE ledger (
    made_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    damage TEXT NOT NULL
) STRICT;
INSERT INTO ledger SELECT now, now, '' FROM (SELECT (julianday('now') - 2440587.5) * 86400 AS now);
UPDATE ledger SET made_at = coalesce((SELECT min(received_at) FROM jobs), made_at);
""",
    """
CREATE TABLE pauses (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    created_at REAL NOT NULL,
    body BLOB NOT NULL
) STRICT;
ALTER TABLE ledger ADD COLUMN windows TEXT NOT NULL DEFAULT '';
""",
    """
ALTER TABLE jobs ADD COLUMN postponements INTEGER NOT NULL DEFAULT 0;
""",
)
"""What makes a ledger of each version from the one before; the first from nothing."""
SCHEMA_VERSION = len(MIGRATIONS)
_FORGOTTEN = 20  # rows at a time: jobs that are due must not wait for more

_KEPT = ("id", "digest", "body", "received_at", "supersedes", "created_at")
_CHANGING = (
    "state",
    "open",
    "shown_at",
    "until",
    "cancelled",
    "changed_at",
    "final",
    "starts",
    "process",
    "postponements",
)
_INSERT = (
    f"INSERT INTO jobs ({', '.join((*_KEPT, *_CHANGING))})"  # noqa: S608 - our own
    f" VALUES ({', '.join('?' * (len(_KEPT) + len(_CHANGING)))})"
)
_UPDATE = f"UPDATE jobs SET {' = ?, '.join(_CHANGING)} = ? WHERE id = ?"  # noqa: S608 - our own
_COLUMNS = ", ".join(("body", "received_at", *_CHANGING))


@dataclass(frozen=True)
class JobRecord(JobStatus):
    """A job as an agent keeps it. Times are seconds since the epoch.

    Attributes:
        open: whether this agent may still have something to do with it.
        final: the final report, if this agent made it.
        starts: how often its command was started.
        process: the process that runs it, as `remains.mark` says it; once it has run a while.
        postponements: how often the user postponed it.
    """

    open: bool = True
    changed_at: float = 0.0
    final: Report | None = None
    starts: int = 0
    process: str = ""
    postponements: int = 0

    @property
    def postponements_left(self) -> int | None:
        """How often the user may still postpone it; None where the job sets no limit."""
        most = self.job.max_postponements
        return None if most is None else max(0, most - self.postponements)


def _changing(entry: JobRecord) -> tuple[object, ...]:
    """Return what is written of an entry whenever it changes."""
    return (
        entry.state,
        entry.open,
        entry.shown_at,
        entry.until,
        entry.cancelled,
        entry.changed_at,
        entry.final.body() if entry.final else None,
        entry.starts,
        entry.process,
        entry.postponements,
    )


class DuplicateReason(Enum):
    """Why a job that arrived makes no new entry."""

    SAME = "it was accepted before"
    OTHER = "another job has its id"
    FORGOTTEN = "it is older than what is remembered"


@dataclass(frozen=True)
class Pending:
    """A report that the broker has not confirmed."""

    sequence: int
    state: State
    body: bytes


@dataclass(frozen=True)
class LedgerMetadata:
    """A ledger's own story.

    Attributes:
        made_at: when it was begun, or the one that it was made good from.
        seen_at: when its agent was last seen at work.
        damage: what was wrong with a former one, until that is made good.
        windows: the maintenance windows that its agent goes by.
        pause: what was said last of pausing.
    """

    made_at: float
    seen_at: float
    damage: str
    windows: str
    pause: Pause | None

    @property
    def paused(self) -> bool:
        """Whether its agent starts nothing."""
        return self.pause is not None and self.pause.paused


class Transaction:
    """The ledger within one transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def accept(self, job: Job, now: float, oldest: float = 0.0) -> JobRecord | DuplicateReason:
        """Take in a job; one made before `oldest` only if it is known: it may have run here."""
        digest = job.digest()
        known, refused, withdrawn = self._one(
            "SELECT (SELECT digest FROM jobs WHERE id = ?1),"
            " EXISTS (SELECT 1 FROM refusals WHERE job_id = ?1),"
            " (SELECT reason FROM cancellations WHERE job_id = ?1)",
            job.id,
        )
        if known is not None:
            return DuplicateReason.SAME if known == digest else DuplicateReason.OTHER
        if refused:
            return DuplicateReason.OTHER  # it has its final report
        created_at = job.created_at.timestamp()
        if created_at < oldest:
            return DuplicateReason.FORGOTTEN
        if withdrawn is None and job.supersedes:
            withdrawn = self._superseded(job, created_at)
        entry = JobRecord(job, now, cancelled=withdrawn, changed_at=now)
        self.insert(entry, digest)
        return entry

    def _superseded(self, job: Job, created_at: float) -> str | None:
        """Return why a newer job of its key makes a job that arrives unwanted."""
        query = "SELECT id FROM jobs WHERE supersedes = ? AND (created_at, id) > (?, ?) LIMIT 1"
        row = self._one(query, job.supersedes, created_at, job.id)
        return superseded_by(row[0]) if row else None

    def insert(self, entry: JobRecord, digest: str | None = None) -> None:
        """Write a new entry; `digest`: its job's, if that was taken before."""
        job = entry.job
        kept = (
            job.id,
            digest or job.digest(),
            job.body(),
            entry.received_at,
            job.supersedes,
            job.created_at.timestamp(),
        )
        self._database.execute(_INSERT, (*kept, *_changing(entry)))

    def save(self, entry: JobRecord) -> None:
        """Write an entry's present state."""
        self._database.execute(_UPDATE, (*_changing(entry), entry.job.id))

    def open(self) -> list[JobRecord]:
        """Return the entries that are open."""
        return list(entries(self._database, "WHERE open ORDER BY received_at, id"))

    def newest(self, limit: int) -> Iterator[JobRecord]:
        """Yield the entries that ended last and the user saw, or that ran; the newest first."""
        query = (
            "SELECT id FROM jobs WHERE final IS NOT NULL AND (shown_at IS NOT NULL OR starts)"
            " ORDER BY changed_at DESC LIMIT ?"
        )
        for (job_id,) in self._database.execute(query, (limit,)).fetchall():
            with suppress(ValueError):  # of what has ended, one that cannot be read is borne
                if entry := self.ended(job_id):
                    yield entry

    def ended(self, job_id: str) -> JobRecord | None:
        """Return the entry of a job that ended here. ValueError: it cannot be read."""
        return next(entries(self._database, "WHERE id = ? AND final IS NOT NULL", job_id), None)

    def knows(self, job_id: str) -> bool:
        """Whether a job of this id was accepted, or refused."""
        query = "SELECT 1 FROM jobs WHERE id = ?1 UNION SELECT 1 FROM refusals WHERE job_id = ?1"
        return self._one(query, job_id) is not None

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

    def pause(self, pause: Pause) -> bool:
        """Keep what is said of pausing, if nothing newer is known; return whether it was kept."""
        changed = self._database.execute(
            "INSERT INTO pauses VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET"
            " created_at = excluded.created_at, body = excluded.body"
            " WHERE excluded.created_at > pauses.created_at",
            (pause.created_at.timestamp(), pause.body()),
        )
        return changed.rowcount > 0

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

    def life(self) -> LedgerMetadata:
        """Return this ledger's story."""
        row = self._one("SELECT body FROM pauses")
        pause = Pause.read(row[0], tolerant=True) if row else None
        query = "SELECT made_at, seen_at, damage, windows FROM ledger"
        made_at, seen_at, damage, windows = self._one(query)
        return LedgerMetadata(made_at, seen_at, damage, windows, pause)

    def mended(self, made_at: float = 0.0) -> None:
        """Note that the damage is made good, as far as that goes: of what was made since then."""
        self._database.execute(
            "UPDATE ledger SET damage = '', made_at = max(made_at, ?)", (made_at,)
        )

    def seen(self, now: float, windows: str) -> None:
        """Note that the agent is at work, and its maintenance windows."""
        self._database.execute(
            "UPDATE ledger SET seen_at = max(seen_at, ?), windows = ?", (now, windows)
        )

    def forget(self, before: float) -> bool:
        """Drop some of what ended before a time; return whether there was any."""
        ended = (
            ("jobs", "NOT open AND changed_at < ?"),
            ("cancellations", "received_at < ?"),
            ("refusals", "received_at < ?"),
        )
        gone = (
            self._database.execute(
                f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608 - our own
                f" (SELECT rowid FROM {table} WHERE {when} LIMIT {_FORGOTTEN})",
                (before,),
            )
            for table, when in ended
        )
        return sum(cursor.rowcount for cursor in gone) > 0

    def _one(self, query: str, *values: object) -> Any:
        return self._database.execute(query, values).fetchone()


def superseded_by(job_id: str) -> str:
    """Return the reason of a job that a newer one of its key replaced."""
    return f"superseded by {job_id}"


def entries(database: sqlite3.Connection, where: str, *values: object) -> Iterator[JobRecord]:
    """Yield entries; `where` is the end of the query. ValueError: one cannot be read."""
    query = f"SELECT {_COLUMNS} FROM jobs {where}"  # noqa: S608 - our own
    for row in database.execute(query, values):
        body, received_at, state, is_open, shown_at, until, cancelled, changed_at, final, *run = row
        starts, process, postponements = run
        yield JobRecord(
            job=Job.read(body, tolerant=True),
            received_at=received_at,
            state=State(state),
            open=bool(is_open),
            shown_at=shown_at,
            until=until,
            cancelled=cancelled,
            changed_at=changed_at,
            final=Report.read(final, tolerant=True) if final else None,
            starts=starts,
            process=process,
            postponements=postponements,
        )
