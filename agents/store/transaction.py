"""The ledger's tables: accepted jobs, their states, and the reports to be sent.

`Transaction` has the queries and changes of one transaction. `Ledger` begins and commits it.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from pydantic_core import to_json

from schemas import Context, Job, Pause, Report, State
from schemas.policy import JobStatus
from schemas.reports.packages import InstalledPackage

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
    # Its agent writes them at each start.
    """
ALTER TABLE ledger ADD COLUMN countdown REAL NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN takeover_grace REAL NOT NULL DEFAULT 0;
""",
    # The open foreground jobs of a service agent as they were received.
    """
CREATE TABLE originals (
    job_id TEXT PRIMARY KEY,
    body BLOB NOT NULL,
    signatures TEXT
) STRICT;
""",
    # The name of the workstation, and the jobs that were received under a former name.
    """
ALTER TABLE ledger ADD COLUMN workstation TEXT NOT NULL DEFAULT '';
CREATE TABLE former_names (
    job_id TEXT PRIMARY KEY,
    workstation TEXT NOT NULL
) STRICT;
""",
    # The greatest serial number of each channel's list, and the packages that the agent has run.
    """
CREATE TABLE channels (
    name TEXT PRIMARY KEY,
    serial INTEGER NOT NULL
) STRICT;
CREATE TABLE packages (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
""",
)
"""Each script migrates a ledger to the next version; the first one creates it."""
SCHEMA_VERSION = len(MIGRATIONS)
_DELETE_BATCH = 20  # rows; larger deletions would delay jobs that are due

_FIXED_COLUMNS = ("id", "digest", "body", "supersedes", "created_at")
_MUTABLE_COLUMNS = (
    "received_at",  # the start of the service's wait, which begins anew after sleep
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
    f"INSERT INTO jobs ({', '.join((*_FIXED_COLUMNS, *_MUTABLE_COLUMNS))})"  # noqa: S608 - our own
    f" VALUES ({', '.join('?' * (len(_FIXED_COLUMNS) + len(_MUTABLE_COLUMNS)))})"
)
_UPDATE = f"UPDATE jobs SET {' = ?, '.join(_MUTABLE_COLUMNS)} = ? WHERE id = ?"  # noqa: S608 - our own
_COLUMNS = ", ".join(("body", *_MUTABLE_COLUMNS))


@dataclass(frozen=True)
class JobRecord(JobStatus):
    """A job in an agent's ledger. Times are seconds since the epoch.

    Attributes:
        open: whether this agent may still have work to do for the job.
        final: the final report, if this agent made it.
        starts: how often its command was started.
        process: identity of the command's process; empty until the command has run for a while.
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
        """How often the user may still postpone it; None if the job sets no limit."""
        limit = self.job.max_postponements
        return None if limit is None else max(0, limit - self.postponements)


def _mutable_values(record: JobRecord) -> tuple[object, ...]:
    """Return the values of the mutable columns."""
    return (
        record.received_at,
        record.state,
        record.open,
        record.shown_at,
        record.until,
        record.cancelled,
        record.changed_at,
        record.final.body() if record.final else None,
        record.starts,
        record.process,
        record.postponements,
    )


class DuplicateReason(Enum):
    """Why a received job is not stored as a new record."""

    SAME = "it was accepted before"
    CONFLICT = "another job has its id"
    TOO_OLD = "it is older than the ledger's retention"


class Original(NamedTuple):
    """The body of a message, and its header of signatures."""

    body: bytes
    signatures: str | None


@dataclass(frozen=True)
class PendingReport:
    """A report that the broker has not confirmed."""

    sequence: int
    state: State
    body: bytes


@dataclass(frozen=True)
class LedgerMetadata:
    """What a ledger records about itself and its agent.

    Attributes:
        made_at: when it was created; if it was rebuilt, when the damaged one was created.
        seen_at: when its agent last recorded that it runs.
        damage: what was wrong with the damaged ledger, until the repair is complete.
        windows: the agent's maintenance windows.
        countdown: the agent's setting, in seconds.
        takeover_grace: the agent's setting, in seconds.
        pause: the last pause message.
    """

    made_at: float
    seen_at: float
    damage: str
    windows: str
    countdown: float
    takeover_grace: float
    pause: Pause | None

    @property
    def paused(self) -> bool:
        """Whether the agent starts no jobs."""
        return self.pause is not None and self.pause.paused


class Transaction:
    """Queries and changes of the ledger within one transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def accept(self, job: Job, now: float, oldest: float = 0.0) -> JobRecord | DuplicateReason:
        """Store a new job, unless it is a duplicate or was created before `oldest`.

        A job older than `oldest` may have run here already, so it is not accepted.
        """
        digest = job.digest()
        known_digest, refused, cancelled = self._fetch_one(
            "SELECT (SELECT digest FROM jobs WHERE id = ?1),"
            " EXISTS (SELECT 1 FROM refusals WHERE job_id = ?1),"
            " (SELECT reason FROM cancellations WHERE job_id = ?1)",
            job.id,
        )
        if known_digest is not None:
            return DuplicateReason.SAME if known_digest == digest else DuplicateReason.CONFLICT
        if refused:
            return DuplicateReason.CONFLICT  # the id already has a final report
        created_at = job.created_at.timestamp()
        if created_at < oldest:
            return DuplicateReason.TOO_OLD
        if cancelled is None and job.supersedes:
            cancelled = self._superseded(job, created_at)
        record = JobRecord(job, now, cancelled=cancelled, changed_at=now)
        self.insert(record, digest)
        return record

    def _superseded(self, job: Job, created_at: float) -> str | None:
        """Return the cancellation reason if a newer job of the same key is stored."""
        query = "SELECT id FROM jobs WHERE supersedes = ? AND (created_at, id) > (?, ?) LIMIT 1"
        row = self._fetch_one(query, job.supersedes, created_at, job.id)
        return superseded_by(row[0]) if row else None

    def insert(self, record: JobRecord, digest: str | None = None) -> None:
        """Insert a record; `digest` is the job's digest, if it was computed before."""
        job = record.job
        fixed = (
            job.id,
            digest or job.digest(),
            job.body(),
            job.supersedes,
            job.created_at.timestamp(),
        )
        self._database.execute(_INSERT, (*fixed, *_mutable_values(record)))

    def save(self, record: JobRecord) -> None:
        """Write a record's current state."""
        self._database.execute(_UPDATE, (*_mutable_values(record), record.job.id))
        if not record.open and record.job.context is Context.FOREGROUND:
            self._database.execute("DELETE FROM originals WHERE job_id = ?", (record.job.id,))

    def keep_original(self, job_id: str, original: Original) -> None:
        """Store an open job as it was received, to hand it to another agent."""
        query = "INSERT INTO originals VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        self._database.execute(query, (job_id, *original))

    def original(self, job_id: str) -> Original | None:
        """Return an open job as it was received; None if it is not stored."""
        row = self._fetch_one("SELECT body, signatures FROM originals WHERE job_id = ?", job_id)
        return Original(*row) if row else None

    def open_records(self) -> list[JobRecord]:
        """Return the open jobs."""
        return list(read_records(self._database, "WHERE open ORDER BY received_at, id"))

    def recently_ended(self, limit: int) -> Iterator[JobRecord]:
        """Yield the last ended jobs that were shown to the user or ran, the newest first."""
        query = (
            "SELECT id FROM jobs WHERE final IS NOT NULL AND (shown_at IS NOT NULL OR starts)"
            " ORDER BY changed_at DESC LIMIT ?"
        )
        for (job_id,) in self._database.execute(query, (limit,)).fetchall():
            with suppress(ValueError):  # an unreadable ended job is skipped
                if record := self.ended_record(job_id):
                    yield record

    def ended_record(self, job_id: str) -> JobRecord | None:
        """Return the record of a job that ended here; None if it did not.

        Raises:
            ValueError: the record cannot be read.
        """
        return next(
            read_records(self._database, "WHERE id = ? AND final IS NOT NULL", job_id), None
        )

    def knows(self, job_id: str) -> bool:
        """Whether a job with this id was accepted or refused."""
        query = "SELECT 1 FROM jobs WHERE id = ?1 UNION SELECT 1 FROM refusals WHERE job_id = ?1"
        return self._fetch_one(query, job_id) is not None

    def remember_cancellation(self, job_id: str, reason: str, now: float) -> None:
        """Store a cancellation; its job may be received later."""
        self._database.execute(
            "INSERT INTO cancellations VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (job_id, reason, now),
        )

    def remember_refusal(self, job_id: str, now: float) -> None:
        """Store that this job id was refused; no later job with it is accepted."""
        self._database.execute(
            "INSERT INTO refusals VALUES (?, ?) ON CONFLICT DO NOTHING", (job_id, now)
        )

    def outdated_channel(self, job: Job) -> str:
        """Return why a job's channel refuses it: a newer list was seen; else remember its list."""
        package = job.package
        if package is None or package.channel is None or package.channel_serial is None:
            return ""
        row = self._fetch_one("SELECT serial FROM channels WHERE name = ?", package.channel)
        if row is not None and row[0] > package.channel_serial:
            return (
                f"package: list {package.channel_serial} of the channel {package.channel} is"
                f" outdated: {row[0]} was seen here; send it again"
            )
        self._database.execute(
            "INSERT INTO channels VALUES (?, ?) ON CONFLICT DO UPDATE SET serial = excluded.serial",
            (package.channel, package.channel_serial),
        )
        return ""

    def save_package(self, package: InstalledPackage) -> None:
        """Store what ran of a package, and what detection says."""
        self._database.execute(
            "INSERT INTO packages VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            (package.name, to_json(package)),
        )

    def packages(self) -> list[InstalledPackage]:
        """Return the packages that the agent has run; a row that cannot be read is left out."""
        found = []
        for (body,) in self._database.execute("SELECT body FROM packages ORDER BY name"):
            with suppress(ValueError):
                found.append(InstalledPackage.model_validate_json(body, extra="ignore"))
        return found

    def set_pause(self, pause: Pause) -> bool:
        """Store a pause message, unless a newer one is stored; return whether it was stored."""
        changed = self._database.execute(
            "INSERT INTO pauses VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET"
            " created_at = excluded.created_at, body = excluded.body"
            " WHERE excluded.created_at > pauses.created_at",
            (pause.created_at.timestamp(), pause.body()),
        )
        return changed.rowcount > 0

    def add_report(self, report: Report) -> None:
        """Store a report until the broker has confirmed it."""
        self._database.execute(
            "INSERT INTO outbox (state, body) VALUES (?, ?)", (report.state, report.body())
        )

    def pending_reports(self, limit: int) -> list[PendingReport]:
        """Return the oldest unconfirmed reports."""
        rows = self._database.execute(
            "SELECT sequence, state, body FROM outbox ORDER BY sequence LIMIT ?", (limit,)
        )
        return [PendingReport(sequence, State(state), body) for sequence, state, body in rows]

    def delete_confirmed(self, sequence: int) -> None:
        """Delete the reports up to and including `sequence`; the broker confirmed them."""
        self._database.execute("DELETE FROM outbox WHERE sequence <= ?", (sequence,))

    def bindings(self) -> set[str]:
        """Return the stored routing keys of the agent's queue."""
        return {key for (key,) in self._database.execute("SELECT routing_key FROM bindings")}

    def set_bindings(self, keys: Iterable[str]) -> None:
        """Store the routing keys of the agent's queue."""
        self._database.execute("DELETE FROM bindings")
        self._database.executemany("INSERT INTO bindings VALUES (?)", [(key,) for key in keys])

    def metadata(self) -> LedgerMetadata:
        """Return the ledger's metadata."""
        row = self._fetch_one("SELECT body FROM pauses")
        pause = Pause.read(row[0], tolerant=True) if row else None
        query = "SELECT made_at, seen_at, damage, windows, countdown, takeover_grace FROM ledger"
        made_at, seen_at, damage, windows, countdown, takeover_grace = self._fetch_one(query)
        return LedgerMetadata(made_at, seen_at, damage, windows, countdown, takeover_grace, pause)

    def rename(self, workstation: str, *, reports: bool) -> str:
        """Store the workstation's name; return the former one, or an empty text if it is the same.

        Args:
            workstation: the name.
            reports: whether this agent may report under the former name, as it then does for the
                open jobs. Otherwise they are closed, and unsent reports are deleted.
        """
        (former,) = self._fetch_one("SELECT workstation FROM ledger")
        if not former:  # an older ledger has it only in its bindings
            names = (key.partition(".workstation.")[2] for key in self.bindings())
            former = next(filter(None, names), "")
        self._database.execute("UPDATE ledger SET workstation = ?", (workstation,))
        self._database.execute(
            "DELETE FROM former_names WHERE job_id NOT IN (SELECT id FROM jobs WHERE open)"
        )
        if former in ("", workstation):
            return ""
        self.set_bindings(())  # of another queue
        if reports:
            self._database.execute(
                "INSERT INTO former_names SELECT id, ? FROM jobs WHERE open ON CONFLICT DO NOTHING",
                (former,),
            )
        else:
            self._database.execute("UPDATE jobs SET open = 0 WHERE open")
            self._database.execute("DELETE FROM outbox")
        return str(former)

    def former_names(self) -> dict[str, str]:
        """Return the former names of the workstation under which jobs were received, by job id."""
        return dict(self._database.execute("SELECT job_id, workstation FROM former_names"))

    def mark_repaired(self, made_at: float = 0.0) -> None:
        """Record that the damage is repaired, for jobs created since `made_at`."""
        self._database.execute(
            "UPDATE ledger SET damage = '', made_at = max(made_at, ?)", (made_at,)
        )

    def mark_running(
        self, now: float, windows: str, countdown: float, takeover_grace: float
    ) -> None:
        """Record that the agent runs, and the settings that decide when it starts jobs."""
        self._database.execute(
            "UPDATE ledger SET seen_at = max(seen_at, ?), windows = ?, countdown = ?,"
            " takeover_grace = ?",
            (now, windows, countdown, takeover_grace),
        )

    def delete_ended(self, before: float) -> bool:
        """Delete some of the rows that ended before a time; return whether any were deleted.

        A job of a clock ahead of ours is kept longer: as long as its age would let it be accepted.
        """
        conditions = (
            ("jobs", "NOT open AND changed_at < ?1 AND created_at < ?1"),
            ("cancellations", "received_at < ?1"),
            ("refusals", "received_at < ?1"),
        )
        cursors = (
            self._database.execute(
                f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608 - our own
                f" (SELECT rowid FROM {table} WHERE {condition} LIMIT {_DELETE_BATCH})",
                (before,),
            )
            for table, condition in conditions
        )
        return sum(cursor.rowcount for cursor in cursors) > 0

    def _fetch_one(self, query: str, *values: object) -> Any:
        return self._database.execute(query, values).fetchone()


def superseded_by(job_id: str) -> str:
    """Return the cancellation reason of a job that a newer one replaced."""
    return f"superseded by {job_id}"


def read_records(database: sqlite3.Connection, where: str, *values: object) -> Iterator[JobRecord]:
    """Yield job records; `where` is the end of the query.

    Raises:
        ValueError: a record cannot be read.
    """
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
