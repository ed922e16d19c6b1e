"""Insert rows or update existing ones, in SQLite and PostgreSQL."""

from collections.abc import Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Table, Update, tuple_
from sqlalchemy.dialects import sqlite

from broker.history.schema import jobs, outcomes, results

RANK = ("rank", "rank_at", "rank_offset")
"""The columns of an outcome or a result that order its reports; the highest one counts."""
EARLIER = ("created_at",)
"""The column of a job of which there are reports alone: their earliest time."""


@cache  # building a statement takes longer than executing it
def upsert(dialect: str, table: Table, changed: tuple[str, ...]) -> Any:
    """Return an INSERT with ON CONFLICT, in the dialect of the database.

    Args:
        dialect: the name of the SQL dialect.
        table: the table.
        changed: the columns to update in an existing row; none: the row is left as it is.
    """
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        statement: Any = postgresql.insert(table)
    else:
        statement = sqlite.insert(table)
    if not changed:
        return statement.on_conflict_do_nothing()
    new = statement.excluded
    where: ColumnElement[bool] | None = None
    if table is jobs:  # a job that was read is not replaced
        where = jobs.c.body.is_(None)
        if changed == EARLIER:
            where &= new.created_at < jobs.c.created_at
    elif table in (outcomes, results):  # only by a higher rank
        ours, theirs = (tuple_(*(of[name] for name in RANK)) for of in (table.c, new))
        where = ours < theirs
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: new[name] for name in changed},
        where=where,
    )


def put(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    changed: tuple[str, ...] = (),
) -> int:
    """Insert rows in their order; all have the same columns. See `upsert`.

    Returns:
        How many were inserted or changed.
    """
    if not rows:
        return 0
    statement = upsert(connection.dialect.name, table, changed)
    return _execute(connection, statement, rows, columns=tuple(rows[0]))


def put_tuples(
    connection: Connection,
    table: Table,
    rows: list[tuple[Any, ...]],
    changed: tuple[str, ...] = (),
) -> int:
    """Insert rows of all the table's columns, in the order of the columns; see `put`."""
    if not rows:
        return 0
    dialect = connection.dialect.name
    text, _ = _compiled(dialect, upsert(dialect, table, changed), tuple(table.columns.keys()))
    return connection.exec_driver_sql(text, rows).rowcount


def update_each(
    connection: Connection, statement: Update, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Execute an update with the parameters of each row."""
    if rows:
        _execute(connection, statement, rows)


def _execute(
    connection: Connection,
    statement: Any,
    rows: Sequence[Mapping[str, Any]],
    columns: tuple[str, ...] | None = None,
) -> int:
    text, names = _compiled(connection.dialect.name, statement, columns)
    return connection.exec_driver_sql(text, list(map(itemgetter(*names), rows))).rowcount


@cache
def _compiled(
    dialect: str, statement: Any, columns: tuple[str, ...] | None
) -> tuple[str, Sequence[str]]:
    """Return a statement as text, and the names of its parameters in their order.

    SQLAlchemy's processing of parameters takes as long as the driver, and ours need none.
    """
    compiled = statement.compile(dialect=_positional(dialect), column_keys=columns)
    return str(compiled), compiled.positiontup


def _positional(dialect: str) -> Dialect:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        return PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
    return sqlite.dialect(paramstyle="qmark")
