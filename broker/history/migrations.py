"""The history's versions, and the statements that bring an older one up to date.

The history remembers longer than the stream, so its tables are changed where they stand. To change
them, change `schema`, and add the statements that do the same to the tables of the version before,
in SQL that both databases understand. A version that was released is never changed.
"""

from sqlalchemy import Connection, text

OLDEST = 2
"""The oldest version that can be brought up to date."""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    3: (  # what was read of one broker is never acted on at another
        "ALTER TABLE reading ADD COLUMN cluster TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE reading ADD COLUMN virtual_host TEXT DEFAULT '' NOT NULL",
    ),
}
"""By the version that they lead to from the one before, in their order."""

SCHEMA_VERSION = max(MIGRATIONS)


def migrate(connection: Connection, version: int) -> None:
    """Bring the tables of a version up to date, in the transaction of the caller."""
    for reached in range(version + 1, SCHEMA_VERSION + 1):
        for statement in MIGRATIONS[reached]:
            connection.exec_driver_sql(statement)
    connection.execute(text("UPDATE reading SET version = :version"), {"version": SCHEMA_VERSION})
