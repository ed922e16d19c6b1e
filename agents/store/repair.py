"""Opens an agent's ledger file; a damaged file is set aside and its readable rows are copied.

`agents.inbox.recovery` restores what is not readable from the stream.
"""

import itertools
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from agents.store.state_folder import StateError, sync_directory
from agents.store.transaction import MIGRATIONS, SCHEMA_VERSION, Transaction, read_records
from broker.log import get_logger
from schemas import InvalidMessage, Job, Pause, Report, State
from schemas.errors import PcmError

_log = get_logger()
_TABLES = (
    "jobs",
    "cancellations",
    "refusals",
    "outbox",
    "bindings",
    "pauses",
    "originals",
    "channels",
    "packages",
)
_DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_Row = dict[str, Any]


class Damaged(PcmError):
    """The file is not a valid ledger; the text names the damage."""


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open or create the file.

    A damaged file is renamed, and a new one is created from its readable rows.
    `LedgerMetadata.damage` then names the damage.

    Raises:
        StateError: the file cannot be opened or created, or a newer program wrote it.
    """
    replacement = path.with_name("ledger.new.db")
    try:
        if _is_complete(replacement):
            _replace(path, replacement)  # a former repair was interrupted
        try:
            return _open_checked(path)
        except Damaged as damage:
            _rebuild(path, replacement, str(damage))
        return _open_checked(path)
    except (sqlite3.Error, OSError, Damaged) as error:
        full = "" if shutil.disk_usage(path.parent).free else "; no space is left on its disk"
        raise StateError(f"PCM_STATE_DIR: {path}: {error}{full}") from error


def is_damage(error: BaseException) -> bool:
    """Whether an SQLite error means that the file is damaged."""
    return isinstance(error, sqlite3.Error) and (
        getattr(error, "sqlite_errorcode", None) in _DAMAGE_CODES
    )


def _open_checked(path: Path) -> sqlite3.Connection:
    """Open, migrate and check the file."""
    existed = path.exists()
    database = _connect(path)
    try:
        _check_version(database, path, new=not existed)
        path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a commit waits for the disk
        _migrate(database)
        _check(database)
    except BaseException as error:
        database.close()
        if not existed:
            _remove(path)  # else the next start takes the incomplete file for a damaged one
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise
    return database


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)


def _version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _check_version(database: sqlite3.Connection, path: Path, *, new: bool) -> None:
    version = _version(database)
    if version == 0 and not new:
        raise Damaged("it is empty")
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path}: the ledger has version {version}, this program reads {SCHEMA_VERSION}"
        )


def _migrate(database: sqlite3.Connection) -> None:
    version = _version(database)
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _check(database: sqlite3.Connection) -> None:
    """Raise `Damaged` unless the file's structure, open jobs and pending reports are readable."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Damaged(str(verdict))
    try:
        for _ in read_records(database, "WHERE open"):
            pass
        for digest, body in database.execute("SELECT digest, body FROM jobs WHERE open"):
            if Job.read(body, tolerant=True).digest() != digest:
                raise Damaged("a job does not match its digest")
        for (body,) in database.execute("SELECT body FROM outbox"):
            Report.read(body, tolerant=True)
        Transaction(database).metadata()
    except ValueError as error:
        raise Damaged(f"a record cannot be read: {error}") from error
    except sqlite3.OperationalError as error:  # a missing table, or text that is not UTF-8
        raise Damaged(str(error)) from error


def _rebuild(path: Path, replacement: Path, problem: str) -> None:
    """Replace a damaged ledger by a new one with its readable rows."""
    _remove(replacement)
    copied, unreadable = 0, 0
    with closing(_connect(replacement)) as database:
        for script in MIGRATIONS:
            database.executescript(script)
        database.execute("BEGIN")
        made_at, rows = _read_damaged(path)
        for table, row in rows:
            if row is not None and _insert(database, table, row):
                copied += 1
            else:
                unreadable += 1
        damaged_path = _free_path(path)
        database.execute(
            "UPDATE ledger SET made_at = ?, damage = ?",
            (made_at or time.time(), f"{problem}; it is kept as {damaged_path.name}"),
        )
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # marks it as complete
        database.execute("COMMIT")
    _log.error(
        "ledger.damaged",
        path=str(path),
        reason=problem,
        kept_as=damaged_path.name,
        copied=copied,
        unreadable=unreadable,
    )
    _replace(path, replacement)


def _is_complete(replacement: Path) -> bool:
    if not replacement.exists():
        return False
    try:
        with closing(_connect(replacement)) as database:
            return _version(database) == SCHEMA_VERSION
    except sqlite3.DatabaseError:
        return False


def _replace(path: Path, replacement: Path) -> None:
    # The write-ahead log first: SQLite would apply a leftover one to the new file.
    damaged_path = _free_path(path)
    for suffix in ("-wal", "-shm", ""):
        old = Path(f"{path}{suffix}")
        if old.exists():
            old.rename(f"{damaged_path}{suffix}")
    replacement.rename(path)
    sync_directory(path.parent)


def _free_path(path: Path) -> Path:
    """Return a path that is free for a damaged file."""
    names = (path.with_name(f"ledger.damaged-{number}.db") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _read_damaged(path: Path) -> tuple[float | None, Iterator[tuple[str, _Row | None]]]:
    """Return a damaged ledger's creation time, if readable, and its rows; None for a bad row."""

    def rows() -> Iterator[tuple[str, _Row | None]]:
        with closing(_connect(path)) as database:
            database.text_factory = lambda text: text.decode(errors="replace")
            database.execute("PRAGMA writable_schema = ON")  # allows reading a truncated file
            for table in _TABLES:
                yield from ((table, row) for row in _rows(database, table))

    try:
        with closing(_connect(path)) as database:
            (made_at,) = database.execute("SELECT made_at FROM ledger").fetchone()
            return float(made_at), rows()
    except (sqlite3.Error, TypeError, ValueError):
        return None, rows()


def _rows(database: sqlite3.Connection, table: str) -> Iterator[_Row | None]:
    """Yield a table's rows from both ends, since a bad page hides the rows behind it."""
    seen: set[int] = set()
    for direction in ("ASC", "DESC"):
        try:
            cursor = database.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {direction}")  # noqa: S608 - our own
            names = [column[0] for column in cursor.description][1:]
            for rowid, *values in cursor:
                if rowid in seen:
                    break
                seen.add(rowid)
                row = dict(zip(names, values, strict=True))
                yield row if _valid(table, row) else None
        except sqlite3.Error:
            continue


def _valid(table: str, row: _Row) -> bool:
    try:
        if table == "jobs":
            State(row["state"])
            if row["final"] is not None:
                Report.read(row["final"], tolerant=True)
            return bool(Job.read(row["body"], tolerant=True).digest() == row["digest"])
        if table == "outbox":
            return bool(Report.read(row["body"], tolerant=True).state == row["state"])
        if table == "pauses":
            Pause.read(row["body"], tolerant=True)
    except (InvalidMessage, ValueError, TypeError):
        return False
    return True


def _insert(database: sqlite3.Connection, table: str, row: _Row) -> bool:
    columns = ", ".join(row)
    values = ", ".join("?" * len(row))
    try:
        database.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", tuple(row.values()))  # noqa: S608 - our own
    except sqlite3.IntegrityError:
        return False
    return True
