"""Insert rows or update existing ones, in SQLite and PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Table, tuple_
from sqlalchemy.dialects import sqlite

from broker.history.schema import jobs, outcomes, results

RANK = ("rank", "rank_at", "rank_offset")
"""The columns of an outcome or a result that order its reports; the highest one counts."""
EARLIER = ("created_at",)
"""The column of a job of which there are reports alone: their earliest time."""

_Values = Callable[[Mapping[str, Any]], tuple[Any, ...]]


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
    text, values = _text(connection.dialect.name, table, changed, tuple(rows[0]))
    return connection.exec_driver_sql(text, list(map(values, rows))).rowcount


@cache
def _text(
    dialect: str, table: Table, changed: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, _Values]:
    """Return the compiled `upsert`, and a function that returns its parameters for a row.

    SQLAlchemy's processing of parameters takes as long as the driver, and ours need none.
    """
    compiled = upsert(dialect, table, changed).compile(
        dialect=_positional(dialect), column_keys=list(columns)
    )
    return str(compiled), itemgetter(*compiled.positiontup)


def _positional(dialect: str) -> Dialect:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        return PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
    return sqlite.dialect(paramstyle="qmark")
