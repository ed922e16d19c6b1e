"""The ledger's tables: accepted jobs, their states, and the reports to be sent."""

MIGRATIONS = (
    """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    body BLOB NOT NULL,
    received_at REAL NOT NULL,
    state TEXT NOT NULL,
    open INTEGER NOT NULL,
    shown_at REAL,
    until REAL,
    cancelled TEXT,
    changed_at REAL NOT NULL,
    final BLOB
) STRICT;
CREATE INDEX open_jobs ON jobs (id) WHERE open;
CREATE INDEX changed_jobs ON jobs (changed_at);
CREATE TABLE cancellations (
    job_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    received_at REAL NOT NULL
) STRICT;
CREATE TABLE refusals (
    job_id TEXT PRIMARY KEY,
    received_at REAL NOT NULL
) STRICT;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE bindings (
    routing_key TEXT PRIMARY KEY
) STRICT;
""",
    """
ALTER TABLE jobs ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN process TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN supersedes TEXT;
ALTER TABLE jobs ADD COLUMN created_at REAL NOT NULL DEFAULT 0;
UPDATE jobs SET starts = 1 WHERE state = 'started';
CREATE INDEX superseding_jobs ON jobs (supersedes, created_at) WHERE supersedes IS NOT NULL;
CREATE TABLE ledger (
    made_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    damage TEXT NOT NULL
) STRICT;
INSERT INTO ledger SELECT now, now, '' FROM (SELECT (julianday('now') - 2440587.5) * 86400 AS now);
UPDATE ledger SET made_at = coalesce((SELECT min(received_at) FROM jobs), made_at);
""",
    """
CREATE TABLE pauses (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    created_at REAL NOT NULL,
    body BLOB NOT NULL
) STRICT;
ALTER TABLE ledger ADD COLUMN windows TEXT NOT NULL DEFAULT '';
""",
    """
ALTER TABLE jobs ADD COLUMN postponements INTEGER NOT NULL DEFAULT 0;
""",
    # Its agent writes them at each start.
    """
ALTER TABLE ledger ADD COLUMN countdown REAL NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN takeover_grace REAL NOT NULL DEFAULT 0;
""",
    # The open foreground jobs of a service agent as they were received.
    """
CREATE TABLE originals (
    job_id TEXT PRIMARY KEY,
    body BLOB NOT NULL,
    signatures TEXT
) STRICT;
""",
    # The name of the workstation, and the jobs that were received under a former name.
    """
ALTER TABLE ledger ADD COLUMN workstation TEXT NOT NULL DEFAULT '';
CREATE TABLE former_names (
    job_id TEXT PRIMARY KEY,
    workstation TEXT NOT NULL
) STRICT;
""",
)
"""Each script migrates a ledger to the next version; the first one creates it."""
SCHEMA_VERSION = len(MIGRATIONS)
