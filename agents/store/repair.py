"""Opens an agent's ledger file; a damaged one is set aside, and what is readable taken over.

What a damaged file can no longer tell, `agents.recovery` asks the broker.
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
from agents.store.transaction import MIGRATIONS, SCHEMA_VERSION, Transaction, entries
from broker.log import get_logger
from schemas import InvalidMessage, Job, Pause, Report, State
from schemas.errors import PcmError

_log = get_logger()
_TABLES = ("jobs", "cancellations", "refusals", "outbox", "bindings", "pauses")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_Row = dict[str, Any]


class Damaged(PcmError):
    """The file is no sound ledger; the text says what is wrong with it."""


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open the file, or make it.

    A damaged file is kept under another name, and a new one made from what can be read of it:
    `Transaction.damage` tells what was wrong.

    Raises:
        StateError: that is not possible, or a newer program wrote it.
    """
    successor = path.with_name("ledger.new.db")
    try:
        if _complete(successor):
            _replace(path, successor)  # a former attempt was cut off
        try:
            return _sound(path)
        except Damaged as damage:
            _succeed(path, successor, str(damage))
        return _sound(path)
    except (sqlite3.Error, OSError, Damaged) as error:
        full = "" if shutil.disk_usage(path.parent).free else "; no space is left on its disk"
        raise StateError(f"PCM_STATE_DIR: {path}: {error}{full}") from error


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the file itself is damaged."""
    return isinstance(error, sqlite3.Error) and (
        getattr(error, "sqlite_errorcode", None) in _DAMAGED
    )


def _sound(path: Path) -> sqlite3.Connection:
    """Open the file, bring it to this version, and look whether all is readable."""
    existed = path.exists()
    database = _connect(path)
    try:
        _check_version(database, path, new=not existed)
        path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a commit is on the disk, not on its way
        _migrate(database)
        _check(database)
    except BaseException as error:
        database.close()
        if not existed:
            _remove(path)  # half made, it would be taken for a damaged one
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
    """Raise `Damaged` unless the file's structure, open jobs and waiting reports are readable."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Damaged(str(verdict))
    try:
        for _ in entries(database, "WHERE open"):
            pass
        for digest, body in database.execute("SELECT digest, body FROM jobs WHERE open"):
            if Job.read(body, tolerant=True).digest() != digest:
                raise Damaged("a job is not what it was")
        for (body,) in database.execute("SELECT body FROM outbox"):
            Report.read(body, tolerant=True)
        Transaction(database).life()
    except ValueError as error:
        raise Damaged(f"a record cannot be read: {error}") from error
    except sqlite3.OperationalError as error:  # a table is missing, or text is no text
        raise Damaged(str(error)) from error


def _succeed(path: Path, successor: Path, problem: str) -> None:
    """Put a new ledger in the place of a damaged one."""
    _remove(successor)
    taken, lost = 0, 0
    with closing(_connect(successor)) as database:
        for script in MIGRATIONS:
            database.executescript(script)
        database.execute("BEGIN")
        made_at, rows = _readable(path)
        for table, row in rows:
            if row is not None and _insert(database, table, row):
                taken += 1
            else:
                lost += 1
        aside = _aside(path)
        database.execute(
            "UPDATE ledger SET made_at = ?, damage = ?",
            (made_at or time.time(), f"{problem}; it is kept as {aside.name}"),
        )
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # with it, it is complete
        database.execute("COMMIT")
    _log.error(
        "ledger.damaged",
        path=str(path),
        reason=problem,
        kept_as=aside.name,
        taken_over=taken,
        unreadable=lost,
    )
    _replace(path, successor)


def _complete(successor: Path) -> bool:
    if not successor.exists():
        return False
    try:
        with closing(_connect(successor)) as database:
            return _version(database) == SCHEMA_VERSION
    except sqlite3.DatabaseError:
        return False


def _replace(path: Path, successor: Path) -> None:
    # The log first: were it left, it would be taken for the new file's.
    aside = _aside(path)
    for suffix in ("-wal", "-shm", ""):
        old = Path(f"{path}{suffix}")
        if old.exists():
            old.rename(f"{aside}{suffix}")
    successor.rename(path)
    sync_directory(path.parent)


def _aside(path: Path) -> Path:
    """Return a name that is free for a damaged file."""
    names = (path.with_name(f"ledger.damaged-{number}.db") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _readable(path: Path) -> tuple[float | None, Iterator[tuple[str, _Row | None]]]:
    """Return when a damaged ledger was begun, if it tells, and its rows, None for a bad one."""

    def rows() -> Iterator[tuple[str, _Row | None]]:
        with closing(_connect(path)) as database:
            database.text_factory = lambda text: text.decode(errors="replace")
            database.execute("PRAGMA writable_schema = ON")  # read on where the file is cut off
            for table in _TABLES:
                yield from ((table, row) for row in _rows(database, table))

    try:
        with closing(_connect(path)) as database:
            (made_at,) = database.execute("SELECT made_at FROM ledger").fetchone()
            return float(made_at), rows()
    except (sqlite3.Error, TypeError, ValueError):
        return None, rows()


def _rows(database: sqlite3.Connection, table: str) -> Iterator[_Row | None]:
    """Yield a table's rows from both ends: a bad page hides what is behind it."""
    seen: set[int] = set()
    for direction in ("ASC", "DESC"):
        try:
            found = database.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {direction}")  # noqa: S608 - our own
            names = [column[0] for column in found.description][1:]
            for rowid, *values in found:
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
