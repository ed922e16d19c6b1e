"""The tab of the jobs that ended, with a search."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from agents.window import model
from agents.window.snapshot import EndedJob
from agents.window.table import Table, TableColumn, cell, set_text
from agents.window.times import clock, duration


class HistoryPane(Vertical):
    """The jobs that ended on this workstation."""

    COLUMNS: ClassVar = (
        TableColumn("at", "When", width=12),
        TableColumn("name", "Name", share=3),
        TableColumn("sender", "Sender", width=16),
        TableColumn("result", "Result", width=24),
        TableColumn("duration", "Duration", width=10, from_width=100),
        TableColumn("command", "Command", share=3, from_width=120),
    )

    def __init__(self) -> None:
        super().__init__()
        self._all: tuple[EndedJob, ...] = ()
        self._now = 0.0
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Create the search field, the table, and the text shown in its place."""
        yield Input(placeholder="Search (/): name, sender or result", compact=True)
        yield Table(self.COLUMNS, id="history")
        yield Static(id="no-history", classes="empty", markup=False)

    @property
    def table(self) -> Table:
        """The table of jobs."""
        return self.query_one("#history", Table)

    @property
    def job(self) -> str:
        """The job under the cursor."""
        return self.table.job

    def show(self, history: tuple[EndedJob, ...], now: float) -> None:
        """Show those of these jobs that match the search."""
        self._all, self._now = history, now
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Update the table."""
        event.stop()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Move the focus to the table."""
        event.stop()
        self.table.focus()

    def _draw(self) -> None:
        query = self.query_one(Input).value
        drawn = self._all, query, clock(0, self._now)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        jobs = model.search(self._all, query)
        self.table.put({job.job: self._cells(job) for job in jobs})
        self.table.display = bool(jobs)
        placeholder = self.query_one("#no-history", Static)
        placeholder.display = not jobs
        set_text(placeholder, "No job matches." if query else "No job has ended yet.")

    def _cells(self, job: EndedJob) -> dict[str, Text]:
        return {
            "at": cell(clock(job.at, self._now)),
            "name": cell(job.name),
            "sender": cell(job.sender),
            "result": cell(model.format_result(job)),
            "duration": cell(duration(job.duration) if job.duration is not None else ""),
            "command": cell(job.command),
        }
