"""The tables of the history in SQLite or PostgreSQL.

Times are seconds since the epoch. Offsets are those of the stream `pcm.reports`; if it has replaced
a former stream, they continue that stream's offsets.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()


def _table(name: str, *columns: Any) -> Table:
    # Rows are looked up by their primary key: without a rowid, SQLite needs no second index.
    return Table(name, metadata, *columns, sqlite_with_rowid=False)


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
    Column("already_present", Boolean),  # detection decided: no command ran
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
    Column("woke_at", Float),  # its machine last woke from sleep
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

packages = _table(
    "packages",
    _text("workstation", key=True),
    _text("agent", key=True),
    _text("name", key=True),
    _text("version"),
    _text("manifest"),
    _text("command"),
    _text("state"),
    Column("installed", Boolean, nullable=False),
    Column("present", Boolean),  # what detection says; NULL: it has none
    Column("ran_at", Float, nullable=False),
    Column("checked_at", Float),
)
"""The packages that agents ran, by their last inventory."""
Index("of_package", packages.c.name)

contents = _table(
    "contents",
    _text("workstation", key=True),
    _text("agent", key=True),
    _text("manifest", key=True),
    _text("name"),
    _text("version"),
    _text("state"),
    Column("received", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("rate", BigInteger, nullable=False),
    _text("reason"),
    Column("at", Float, nullable=False),
)
"""The content that open jobs need, by the agents' last check-ins."""
Index("of_content", contents.c.manifest)

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

CONTENT = tuple(table for table in metadata.sorted_tables if table is not reading)
"""The tables with the stream's contents."""
