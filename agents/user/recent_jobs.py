"""The jobs that ended in a user's session, as a window shows them."""

from collections.abc import Iterable
from typing import Any

from agents.store.transaction import JobRecord
from agents.user.views import ended

MAX_ROWS = 200
"""The number of rows shown."""


class RecentJobs:
    """The jobs that ended last, the newest first."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, entry: JobRecord) -> None:
        """Add a job that ended, if it was shown to the user or started."""
        if entry.shown_at is not None or entry.starts:
            self.rows = [ended(entry), *self.rows][:MAX_ROWS]

    def fill(self, older: Iterable[dict[str, Any]]) -> None:
        """Add the jobs that ended before the agent was started."""
        known = {row["job"] for row in self.rows}
        self.rows += [row for row in older if row["job"] not in known]
        del self.rows[MAX_ROWS:]

    def find(self, job_id: str) -> dict[str, Any] | None:
        """Return the row of a job, if there is one."""
        return next((row for row in self.rows if row["job"] == job_id), None)
