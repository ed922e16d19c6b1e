"""Open the history in SQLite or PostgreSQL; create or migrate its tables."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from broker.history.address import hidden, shown
from broker.history.migrations import OLDEST, SCHEMA_VERSION, migrate
from broker.history.schema import metadata, reading
from broker.settings import WrongSetting
from schemas.errors import PcmError

_LOCK = 7_263_001  # arbitrary: the key of our advisory lock in PostgreSQL
_WRITE = "PCM_HISTORY_URL: write sqlite:////absolute/path.db or postgresql://USER@HOST/DATABASE"
_LOCK_TIMEOUT = 30.0  # seconds to wait for another process's transaction
_ANOTHER = "set another PCM_HISTORY_URL"
_COLUMNS = {
    "sqlite": "SELECT t.name, c.name FROM sqlite_master AS t, pragma_table_info(t.name) AS c"
    " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!'",
    "postgresql": "SELECT table_name, column_name FROM information_schema.columns"
    " WHERE table_schema = current_schema()",
}


class HistoryError(PcmError):
    """The history's database cannot be used now; the message says why."""


class UnusableHistory(HistoryError):
    """This program cannot use the database; trying again does not help."""


class WrongHistory(UnusableHistory, WrongSetting):
    """The URL of the history is wrong."""


def open_history(url: str) -> Engine:
    """Open the history; create or migrate its tables.

    Raises:
        HistoryError: the database cannot be used.
    """
    engine = engine_of(url)
    try:
        prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def prepare(engine: Engine) -> None:
    """Create the tables in an empty database, or migrate older ones.

    Raises:
        HistoryError: the database cannot be used; nothing was changed.
    """
    # In a snapshot: another program may be migrating the tables.
    with map_database_errors(engine), connect_snapshot(engine) as connection:
        if _check(connection) == SCHEMA_VERSION:
            return
    with map_database_errors(engine), engine.begin() as connection:
        _lock(connection)
        version = _check(connection)  # another program may have done it
        if version is None:
            _create(connection)
        elif version != SCHEMA_VERSION:
            migrate(connection, version)
            _check(connection)


def check_version(connection: Connection, version: int) -> None:
    """Check that the tables have this program's version.

    Raises:
        UnusableHistory: they have another version.
    """
    if version > SCHEMA_VERSION:
        raise _unusable(
            connection,
            f"is of version {version}, this program knows versions up to {SCHEMA_VERSION}:"
            f" install a newer package-command-manager, or {_ANOTHER}",
        )
    if version < SCHEMA_VERSION:
        raise _unusable(
            connection,
            f"is of version {version}, which this program cannot bring up to {SCHEMA_VERSION}:"
            f" {_ANOTHER}",
        )


def engine_of(url: str) -> Engine:
    """Return an engine for a URL; it does not connect yet.

    Raises:
        WrongHistory: the URL is wrong.
        UnusableHistory: the driver is not installed, or the folder cannot be created.
    """
    try:
        parsed = _parsed(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, pool_pre_ping=True)
    except WrongHistory:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise WrongHistory(_WRITE) from error
    except ImportError as error:
        raise UnusableHistory(
            f"PCM_HISTORY_URL: {error.name} is missing: install package-command-manager[postgresql]"
        ) from error
    raise WrongHistory(_WRITE)


def _parsed(url: str) -> URL:
    parsed = make_url(url)
    if "@" in (parsed.host or ""):  # otherwise messages show part of the password as the host
        raise WrongHistory("PCM_HISTORY_URL: write an @ of a user or a password as %40")
    return parsed


def _sqlite(url: URL) -> Engine:
    path = url.database
    if not path or url.query:
        raise WrongHistory("PCM_HISTORY_URL: name a file: sqlite:////absolute/path.db")

    def connect() -> sqlite3.Connection:
        # Mode 0600: the file contains the output of commands. An existing file is not opened here:
        # closing it would release the locks of this process's other connections.
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror) from error
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, check_same_thread=False)
        # Transactions lost in a power failure are read from the stream again.
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -65536"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    folder = Path(path).parent
    try:
        if folder.is_relative_to(Path.home()):  # elsewhere the administrator creates folders
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableHistory(f"PCM_HISTORY_URL: {path}: {error.strerror}") from error
    if not folder.is_dir():
        raise WrongHistory(f"PCM_HISTORY_URL: {folder}: no such folder; create it first")
    # No pool: each connection opens the file that is there now.
    return create_engine(url, creator=connect, poolclass=NullPool)


def _check(connection: Connection) -> int | None:
    """Return the version of the tables; None if there are none.

    Raises:
        UnusableHistory: they are of another program, damaged, or of an unknown version.
    """
    dialect = connection.dialect.name
    found = set(map(tuple, connection.exec_driver_sql(_COLUMNS[dialect]).all()))
    if (reading.name, reading.c.version.name) not in found:
        # An SQLite file contains only the history; a PostgreSQL schema may have other tables.
        names = {table for table, _ in found}
        if others := names if dialect == "sqlite" else names & metadata.tables.keys():
            what = f"has a table {min(others)} that is not of a history"
            raise _unusable(connection, f"{what}: {_ANOTHER}")
        return None
    versions = connection.scalars(select(reading.c.version)).all()
    if len(versions) != 1:
        raise _damaged(connection, f"{reading.name} has {len(versions)} rows")
    version: int = versions[0]
    if OLDEST <= version < SCHEMA_VERSION:
        return version
    check_version(connection, version)
    ours = {(name, column.name) for name, table in metadata.tables.items() for column in table.c}
    if missing := ours - found:
        raise _damaged(connection, "{}.{} is missing".format(*min(missing)))
    return version


def _damaged(connection: Connection, what: str) -> UnusableHistory:
    return _unusable(connection, f"is damaged: {what}: restore it from a copy, or {_ANOTHER}")


def _unusable(connection: Connection, why: str) -> UnusableHistory:
    return UnusableHistory(f"PCM_HISTORY_URL: {shown(connection.engine.url)} {why}")


def _lock(connection: Connection) -> None:
    """Lock the tables' structure against other programs."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table))
        for index in table.indexes:
            connection.execute(CreateIndex(index))
    connection.execute(insert(reading).values(id=1, version=SCHEMA_VERSION, base=0, next_offset=0))


@contextmanager
def connect_snapshot(engine: Engine) -> Iterator[Connection]:
    """Connect with a snapshot: all queries see the database as of one instant."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            yield connection.execution_options(**options)
        else:
            connection.exec_driver_sql("BEGIN")
            yield connection


@contextmanager
def map_database_errors(engine: Engine) -> Iterator[None]:
    """Map errors of the database to `HistoryError` with a one-line message."""
    try:
        yield
    except DBAPIError as error:
        lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        damaged = "malformed" in lines[0] or "not a database" in lines[0]
        remedy = f": restore it from a copy, or {_ANOTHER}" if damaged else ""
        why = hidden(lines[0], engine.url)
        raise HistoryError(f"PCM_HISTORY_URL: {shown(engine.url)}: {why}{remedy}") from error
    except SQLAlchemyError as error:
        raise HistoryError(f"PCM_HISTORY_URL: {hidden(str(error), engine.url)}") from error
