"""The history's tables, in SQLite or PostgreSQL, and how they are opened.

Times are seconds since the epoch; offsets are those of the stream `pcm.reports`, behind those of
a former one that it took the place of.
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

_LOCK = 7_263_001  # any number that nobody else takes in PostgreSQL's advisory locks
_WRITE = "PCM_HISTORY_URL: write sqlite:////absolute/path.db or postgresql://USER@HOST/DATABASE"
_BUSY = 30.0  # seconds for which another process's transaction is waited for
_ANOTHER = "set another PCM_HISTORY_URL"
_COLUMNS = {
    "sqlite": "SELECT t.name, c.name FROM sqlite_master AS t, pragma_table_info(t.name) AS c"
    " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!'",
    "postgresql": "SELECT table_name, column_name FROM information_schema.columns"
    " WHERE table_schema = current_schema()",
}

_metadata = MetaData()


class HistoryError(PcmError):
    """The history's database cannot be used now, and why."""


class UnusableHistory(HistoryError):
    """It is none that this program can use, whenever it is tried."""


class WrongHistory(UnusableHistory, WrongSetting):
    """Its URL is none, or leads nowhere."""


def _table(name: str, *columns: Any) -> Table:
    # All are looked up by their key alone: in SQLite the table is then its key's index.
    return Table(name, _metadata, *columns, sqlite_with_rowid=False)


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False, server_default=None if key else "")


def _time(name: str) -> Column[float]:
    return Column(name, Double)


reading = _table(
    "reading",
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("version", Integer, nullable=False),
    Column("base", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    _text("last"),
    _text("collector"),
    _time("collected_at"),  # when a collector last had all that there was
    _time("kept_at"),  # when what is too old was last dropped
    _text("cluster"),
    _text("virtual_host"),
)
"""How far the stream was read, and of which broker: written with what was read, in one transaction.

A broker is known by the cluster name that it tells; none: nothing was read since that is noted.
"""

gaps = _table(
    "gaps",
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("next", BigInteger, nullable=False),
    _text("why"),
)
"""What was never read, since the stream had dropped it."""

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
    Column("body", LargeBinary),  # none: only reports of it were found
    _text("signatures"),  # as they came, of these very bytes
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
"""What is known of each job on each workstation: the report that says most."""
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
)
"""How each command that was started ended, with its output, as JSON."""

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

POLICY = frozenset({"windows", "zone", "countdown", "takeover_grace", "accept_offers"})
"""What check-ins tell of that by which agents decide; it is kept together."""

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
    _text("windows"),  # and the rest of POLICY, as JSON; of older check-ins the windows alone
    Column("waiting", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("signed_only", Boolean, nullable=False),
    _text("sealing_key"),
)

records = _table(
    "records",
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("subject"),
    Column("at", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _text("signatures"),
)
"""What else administrators asked: cancellations, departures, rollouts, schedules."""
Index("asked", records.c.kind, records.c.subject)

forgeries = _table(
    "forgeries",
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    _text("digest"),
    Column("told", Boolean, nullable=False),
    _text("login"),
    _text("kind"),
    _text("routing_key"),
    _text("reason"),
    Column("body", LargeBinary),  # none: it is told
)
"""What is not by whom it speaks of, and whether the administrators were told."""
Index("digests", forgeries.c.digest)
Index("untold", forgeries.c.told)

CONTENT = tuple(table for table in _metadata.sorted_tables if table is not reading)
"""All that is read from the stream."""


def open_history(url: str) -> Engine:
    """Open the history; its tables are made, or brought up to date.

    Raises:
        HistoryError: that is not possible.
    """
    engine = engine_of(url)
    try:
        prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def prepare(engine: Engine) -> None:
    """Make the tables in an empty database, and bring older ones up to date.

    Raises:
        HistoryError: the database cannot be reached; or it is unusable, and nothing was changed.
    """
    with (
        map_database_errors(engine),
        snapshot(engine) as connection,
    ):  # else a migration shows in halves
        if _check(connection) == SCHEMA_VERSION:
            return
    with map_database_errors(engine), engine.begin() as connection:
        _lock(connection)
        version = _check(connection)  # another program may have been first
        if version is None:
            _create(connection)
        elif version != SCHEMA_VERSION:
            migrate(connection, version)
            _check(connection)


def check_version(connection: Connection, version: int) -> None:
    """Refuse tables of another version than this program's.

    Raises:
        UnusableHistory: it is another one; a newer program has changed them meanwhile.
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
    """Return a way to the database of a URL; nothing is asked of it yet.

    Raises:
        WrongHistory: it is no such URL.
        UnusableHistory: what it takes is not there.
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
    if "@" in (parsed.host or ""):  # else a part of the password is told as the host
        raise WrongHistory("PCM_HISTORY_URL: write an @ of a user or a password as %40")
    return parsed


def _sqlite(url: URL) -> Engine:
    path = url.database
    if not path or url.query:
        raise WrongHistory("PCM_HISTORY_URL: name a file: sqlite:////absolute/path.db")

    def connect() -> sqlite3.Connection:
        # It holds what commands wrote: nobody else reads that. One that is there is not opened:
        # to close it would end the locks that this process's other connections have on it.
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror) from error
        connection = sqlite3.connect(path, timeout=_BUSY, check_same_thread=False)
        # What a loss of power takes away is read from the stream again.
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -65536"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    folder = Path(path).parent
    try:
        if folder.is_relative_to(Path.home()):  # elsewhere it is not for us to make folders
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableHistory(f"PCM_HISTORY_URL: {path}: {error.strerror}") from error
    if not folder.is_dir():
        raise WrongHistory(f"PCM_HISTORY_URL: {folder}: is no folder; make it first")
    # No pool: a file that was removed, or put back, is met as it is.
    return create_engine(url, creator=connect, poolclass=NullPool)


def _check(connection: Connection) -> int | None:
    """Return the version of the tables; None where there are none.

    Raises:
        UnusableHistory: they are no history's, damaged, or of a version that is not known.
    """
    dialect = connection.dialect.name
    found = set(map(tuple, connection.exec_driver_sql(_COLUMNS[dialect]).all()))
    if (reading.name, reading.c.version.name) not in found:
        # An SQLite file is the history's alone; in PostgreSQL others may have tables beside it.
        names = {table for table, _ in found}
        if others := names if dialect == "sqlite" else names & _metadata.tables.keys():
            what = f"holds a table {min(others)} that is no history's"
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
    """Let one program at a time change the tables."""
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
    """Connect for questions whose answers are of one moment, whatever is written meanwhile."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            yield connection.execution_options(**options)
        else:
            connection.exec_driver_sql("BEGIN")
            yield connection


@contextmanager
def map_database_errors(engine: Engine) -> Iterator[None]:
    """Tell what the database says is wrong in one line, as HistoryError."""
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
