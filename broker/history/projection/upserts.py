"""Rows that are inserted, or change what is there: as SQL, for both databases."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Table, tuple_
from sqlalchemy.dialects import sqlite

from broker.history.schema import jobs, outcomes

RANK = ("rank", "rank_at", "rank_offset")
"""The columns of an outcome by which the later of two is known."""

_Values = Callable[[Mapping[str, Any]], tuple[Any, ...]]


@cache  # to make one takes longer than to execute it
def upsert(dialect: str, table: Table, changed: tuple[str, ...]) -> Any:
    """Return an INSERT that knows ON CONFLICT, which both databases do, each by itself.

    Args:
        dialect: the database's name.
        table: where to.
        changed: the columns that are set where the row is there.
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
    if table is jobs:  # sent again it is the same job; what its reports alone tell is less
        where = jobs.c.body.is_(None)
    elif table is outcomes:  # only what says more than what is known
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
) -> None:
    """Insert rows in their order, all of the same columns; see `upsert`."""
    if rows:
        text, values = _text(connection.dialect.name, table, changed, tuple(rows[0]))
        connection.exec_driver_sql(text, list(map(values, rows)))


@cache
def _text(
    dialect: str, table: Table, changed: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, _Values]:
    """Return `upsert` as the driver takes it, with what makes its values of a row.

    What is done to every value of a statement on its way to the driver, and has nothing to do to
    ours, takes as long as the driver.
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
