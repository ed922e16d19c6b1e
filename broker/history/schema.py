"""The tables of the history in SQLite or PostgreSQL; open, create and migrate them.

Times are seconds since the epoch. Offsets are those of the stream `pcm.reports`; if it has replaced
a former stream, they continue that stream's offsets.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from broker.history.address import hidden, shown
from broker.history.migrations import OLDEST, SCHEMA_VERSION, migrate
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

_metadata = MetaData()


class HistoryError(PcmError):
    """The history's database cannot be used now; the message says why."""


class UnusableHistory(HistoryError):
    """This program cannot use the database; trying again does not help."""


class WrongHistory(UnusableHistory, WrongSetting):
    """The URL of the history is wrong."""


def _table(name: str, *columns: Any) -> Table:
    # Rows are looked up by their primary key: without a rowid, SQLite needs no second index.
    return Table(name, _metadata, *columns, sqlite_with_rowid=False)


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False, server_default=None if key else "")


def _time(name: str) -> Column[float]:
    return Column(name, Double)


reading = _table(
    "reading",
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: the only row
    Column("version", Integer, nullable=False),
    Column("base", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    _text("last"),
    _text("collector"),
    _time("collected_at"),  # when a collector last renewed its lease
    _time("cleaned_at"),  # when expired jobs were last deleted
    _text("cluster"),
    _text("virtual_host"),
)
"""The read position, the stream's broker, and the collector's lease.

The position is written in the same transaction as the rows that were read. The broker is identified
by its cluster name; both are empty until the first read.
"""

gaps = _table(
    "gaps",
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("next", BigInteger, nullable=False),
    _text("why"),
)
"""Ranges of offsets that are missing, because the stream had dropped them before they were read."""

jobs = _table(
    "jobs",
    _text("id", key=True),
    Column("offset", BigInteger, nullable=False),
    _text("name"),
    _text("context"),
    _text("requirement"),
    _text("sender"),
    _text("targets"),
    _text("command"),
    Column("created_at", Double, nullable=False),
    _time("offer_at"),
    _time("mandatory_at"),
    _time("expires_at"),
    _time("cancelled_at"),
    Column("cancel_offset", BigInteger),
    _text("cancelled_by"),
    _text("cancel_reason"),
    Column("rerun_of", Text),
    Column("rollout", Text),
    Column("schedule", Text),
    Column("body", LargeBinary),  # NULL: only its reports are known
    _text("signatures"),  # the header of signatures, of exactly these bytes
)
Index("newest_jobs", jobs.c.created_at)
Index("occurrences", jobs.c.schedule, jobs.c.created_at)

outcomes = _table(
    "outcomes",
    _text("job_id", key=True),
    _text("workstation", key=True),
    _text("state"),
    Column("rank", Integer, nullable=False),
    Column("rank_at", Double, nullable=False),
    Column("rank_offset", BigInteger, nullable=False),
    _time("at"),
    _text("agent"),
    _text("reason"),
    _time("until"),
    Column("exit_code", BigInteger),
    Column("signal", Integer),
    Column("duration", Double),
    Column("restart_required", Boolean),
    _text("line"),
)
"""The state of each job on each of its workstations: its report with the highest rank."""
Index("states", outcomes.c.job_id, outcomes.c.state)
Index("of_workstation", outcomes.c.workstation, outcomes.c.state)

reports = _table(
    "reports",
    _text("job_id", key=True),
    _text("workstation", key=True),
    _text("id", key=True),
    Column("offset", BigInteger, nullable=False),
    _text("agent"),
    _text("state"),
    Column("at", Double, nullable=False),
    _text("reason"),
    _time("until"),
)

results = _table(
    "results",
    _text("job_id", key=True),
    _text("workstation", key=True),
    Column("body", LargeBinary, nullable=False),
    Column("rank", Integer, nullable=False, server_default="0"),
    Column("rank_at", Float, nullable=False, server_default="0"),
    Column("rank_offset", BigInteger, nullable=False, server_default="0"),
)
"""The result of each command that was started, with its output, as JSON.

The rank is that of its report, as in `outcomes`: the highest one counts.
"""

workstations = _table(
    "workstations",
    _text("name", key=True),
    Column("first_seen", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("seen_offset", BigInteger, nullable=False),
    _text("os"),
    _text("arch"),
    _text("release"),
    _text("python"),
    Column("memory", BigInteger, nullable=False),
)

memberships = _table("memberships", _text("group", key=True), _text("workstation", key=True))
Index("groups_of", memberships.c.workstation)

POLICY = frozenset(
    {"windows", "zone", "countdown", "takeover_grace", "accept_offers", "missing_after"}
)
"""The fields of a check-in that determine an agent's decisions; stored as one column."""

agents = _table(
    "agents",
    _text("workstation", key=True),
    _text("agent", key=True),
    Column("up", Boolean, nullable=False),
    Column("paused", Boolean, nullable=False),
    _time("paused_at"),
    _text("paused_by"),
    _text("pause_reason"),
    Column("at", Double, nullable=False),
    Column("interval", Double, nullable=False),
    _text("program"),
    _text("policy"),  # POLICY as JSON
    Column("waiting", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("signed_only", Boolean, nullable=False),
    _text("sealing_key"),
    Column("revoked_at", Float),  # its login was deleted; it has not checked in since
    Column("queue_new_at", Float),  # its queue was last made anew: jobs in the former one are lost
)

machines = _table(
    "machines",
    _text("workstation", key=True),
    _text("agent", key=True),
    _text("machine", key=True),
    _text("boot", key=True),
    Column("standby", Boolean, primary_key=True, nullable=False),
    _text("host"),
    _text("address"),
    Column("first_offset", BigInteger, nullable=False),
    Column("last_offset", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("interval", BigInteger, nullable=False),
    Column("up", Boolean, nullable=False),
)
"""The machines on which agents checked in; two with one name must be noticed."""

records = _table(
    "records",
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("subject"),
    Column("at", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _text("signatures"),
)
"""The other records of administrators: cancellations, forgotten workstations, rollouts, schedules.
"""
Index("asked", records.c.kind, records.c.subject)

early = _table(
    "early",
    _text("job_id", key=True),
    _text("workstation", key=True),
    _text("agent", key=True),
    _text("id", key=True),
    Column("offset", BigInteger, nullable=False),
    _text("login"),
    _text("routing_key"),
    _text("body"),
)
"""Reports that were read before their job: whether they count is known when it comes."""

rejected_entries = _table(
    "rejected_entries",
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    _text("digest"),
    Column("published", Boolean, nullable=False),  # as a dead letter
    _text("login"),
    _text("kind"),
    _text("routing_key"),
    _text("reason"),
    Column("body", LargeBinary),  # NULL: it is published
)
"""Entries that were not published by the agent that they name."""
Index("rejected_digests", rejected_entries.c.digest)
Index("unpublished", rejected_entries.c.published)

CONTENT = tuple(table for table in _metadata.sorted_tables if table is not reading)
"""The tables with the stream's contents."""


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
    with map_database_errors(engine), snapshot(engine) as connection:
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
        if others := names if dialect == "sqlite" else names & _metadata.tables.keys():
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
    ours = {(name, column.name) for name, table in _metadata.tables.items() for column in table.c}
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
    for table in _metadata.sorted_tables:
        connection.execute(CreateTable(table))
        for index in table.indexes:
            connection.execute(CreateIndex(index))
    connection.execute(insert(reading).values(id=1, version=SCHEMA_VERSION, base=0, next_offset=0))


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
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
