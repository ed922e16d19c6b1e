"""Migrate the history's tables from older versions.

The history keeps jobs longer than the stream, so it cannot be rebuilt: its tables are altered. To
change them, change `schema`, and add a version here with statements that do the same to the tables
of the previous version, in SQL that both databases accept. Never change an existing version.
"""

from sqlalchemy import Connection, text

OLDEST = 2
"""The oldest version that can be migrated."""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    3: (  # the broker that the history was read from
        "ALTER TABLE reading ADD COLUMN cluster TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE reading ADD COLUMN virtual_host TEXT DEFAULT '' NOT NULL",
    ),
    4: (  # only names
        "ALTER TABLE reading RENAME COLUMN kept_at TO cleaned_at",
        "DROP INDEX digests",
        "DROP INDEX untold",
        "ALTER TABLE forgeries RENAME TO rejected_entries",
        "ALTER TABLE rejected_entries RENAME COLUMN told TO published",
        "CREATE INDEX rejected_digests ON rejected_entries (digest)",
        "CREATE INDEX unpublished ON rejected_entries (published)",
    ),
    5: (
        # All settings that determine an agent's decisions, as JSON; at first only the windows.
        "ALTER TABLE agents RENAME COLUMN windows TO policy",
        r"""UPDATE agents SET policy = CASE WHEN policy = '' THEN '{}' ELSE '{"windows":"'
        || replace(replace(policy, '\', '\\'), '"', '\"') || '"}' END
        WHERE substr(policy, 1, 1) <> '{'""",
        # Of several final reports, the result of the one that counts is kept.
        "ALTER TABLE results ADD COLUMN rank INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE results ADD COLUMN rank_at FLOAT DEFAULT '0' NOT NULL",
        "ALTER TABLE results ADD COLUMN rank_offset BIGINT DEFAULT '0' NOT NULL",
        # One statement, since it writes each row with its output again.
        """UPDATE results SET (rank, rank_at, rank_offset) =
        (SELECT o.rank, o.rank_at, o.rank_offset FROM outcomes AS o
        WHERE o.job_id = results.job_id AND o.workstation = results.workstation)
        WHERE EXISTS (SELECT 1 FROM outcomes AS o
        WHERE o.job_id = results.job_id AND o.workstation = results.workstation)""",
    ),
    6: (  # what becomes of the jobs in an agent's queue
        "ALTER TABLE agents ADD COLUMN revoked_at FLOAT",
        "ALTER TABLE agents ADD COLUMN queue_new_at FLOAT",
    ),
    7: (  # the machines behind the names of workstations
        (
            "CREATE TABLE machines (workstation TEXT NOT NULL, agent TEXT NOT NULL,"
            " machine TEXT NOT NULL, boot TEXT NOT NULL, standby BOOLEAN NOT NULL,"
            " host TEXT DEFAULT '' NOT NULL, address TEXT DEFAULT '' NOT NULL,"
            " first_offset BIGINT NOT NULL, last_offset BIGINT NOT NULL,"
            " at BIGINT NOT NULL, interval BIGINT NOT NULL,"
            " up BOOLEAN NOT NULL, PRIMARY KEY (workstation, agent, machine, boot, standby))"
        ),
    ),
    8: (  # reports count only from agents that can have the job
        (
            "CREATE TABLE early (job_id TEXT NOT NULL, workstation TEXT NOT NULL,"
            ' agent TEXT NOT NULL, id TEXT NOT NULL, "offset" BIGINT NOT NULL,'
            " login TEXT DEFAULT '' NOT NULL, routing_key TEXT DEFAULT '' NOT NULL,"
            " body TEXT DEFAULT '' NOT NULL, PRIMARY KEY (job_id, workstation, agent, id))"
        ),
    ),
    9: (
        "ALTER TABLE agents ADD COLUMN woke_at FLOAT",
        # Jobs of programs that knew no default expiry: as agents now expire them, in 30 days.
        """UPDATE jobs SET expires_at = 2592000 + CASE
        WHEN coalesce(mandatory_at, offer_at, created_at) > created_at
        THEN coalesce(mandatory_at, offer_at, created_at) ELSE created_at END
        WHERE expires_at IS NULL AND context <> ''""",  # '': only its reports are known
    ),
    10: (  # packages on workstations, and their downloads
        "ALTER TABLE outcomes ADD COLUMN already_present BOOLEAN",
        (
            "CREATE TABLE packages (workstation TEXT NOT NULL, agent TEXT NOT NULL,"
            " name TEXT NOT NULL, version TEXT DEFAULT '' NOT NULL,"
            " manifest TEXT DEFAULT '' NOT NULL, command TEXT DEFAULT '' NOT NULL,"
            " state TEXT DEFAULT '' NOT NULL, installed BOOLEAN NOT NULL, present BOOLEAN,"
            " ran_at FLOAT NOT NULL, checked_at FLOAT,"
            " PRIMARY KEY (workstation, agent, name))"
        ),
        "CREATE INDEX of_package ON packages (name)",
        (
            "CREATE TABLE contents (workstation TEXT NOT NULL, agent TEXT NOT NULL,"
            " manifest TEXT NOT NULL, name TEXT DEFAULT '' NOT NULL,"
            " version TEXT DEFAULT '' NOT NULL, state TEXT DEFAULT '' NOT NULL,"
            " received BIGINT NOT NULL, size BIGINT NOT NULL, rate BIGINT NOT NULL,"
            " reason TEXT DEFAULT '' NOT NULL, at FLOAT NOT NULL,"
            " PRIMARY KEY (workstation, agent, manifest))"
        ),
        "CREATE INDEX of_content ON contents (manifest)",
    ),
}
"""The statements by the version that they produce from the previous one."""

SCHEMA_VERSION = max(MIGRATIONS)


def migrate(connection: Connection, version: int) -> None:
    """Migrate the tables from a version to the current one, in the caller's transaction."""
    for reached in range(version + 1, SCHEMA_VERSION + 1):
        for statement in MIGRATIONS[reached]:
            connection.exec_driver_sql(statement)
    connection.execute(text("UPDATE reading SET version = :version"), {"version": SCHEMA_VERSION})
