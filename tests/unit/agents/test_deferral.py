"""Limits of postponements, reminders, and stopping by the user."""

import sqlite3
from contextlib import closing
from pathlib import Path

from agents.store import ledger
from agents.store.ledger_schema import MIGRATIONS
from agents.store.repair import open_ledger
from schemas import Command, Job, everyone


def test_a_ledger_of_before_counts_from_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    job = Job(command=Command(argv=("true",)), targets=(everyone,), max_postponements=2)
    with closing(sqlite3.connect(path)) as database:
        for script in MIGRATIONS[:3]:
            database.executescript(script)
        database.execute(
            "INSERT INTO jobs (id, digest, body, received_at, state, open, changed_at)"
            " VALUES (?, ?, ?, 1, 'postponed', 1, 1)",
            (job.id, job.digest(), job.body()),
        )
        database.execute("PRAGMA user_version = 3")
        database.commit()
    open_ledger(path).close()
    (entry,) = ledger.read_ledger(path)
    assert (entry.postponements, entry.postponements_left) == (0, 2)
