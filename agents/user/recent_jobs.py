"""The jobs that ended in a user's session, as a window shows them."""

from collections.abc import Iterable
from typing import Any

from agents.store.transaction import JobRecord
from agents.user.views import ended

MOST = 200
"""How many are shown."""


class RecentJobs:
    """The newest that ended, the last one first."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, entry: JobRecord) -> None:
        """Take in a job that ended, if the user saw it or it was run."""
        if entry.shown_at is not None or entry.starts:
            self.rows = [ended(entry), *self.rows][:MOST]

    def fill(self, older: Iterable[dict[str, Any]]) -> None:
        """Take in what ended before the agent was started."""
        known = {row["job"] for row in self.rows}
        self.rows += [row for row in older if row["job"] not in known]
        del self.rows[MOST:]

    def find(self, job_id: str) -> dict[str, Any] | None:
        """Return the row of a job; None if it is not among them."""
        return next((row for row in self.rows if row["job"] == job_id), None)
