"""The tab of what was run here, with a search."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from agents.window import model
from agents.window.snapshot import EndedJob
from agents.window.table import Table, TableColumn, cell, tell
from agents.window.times import clock, length


class HistoryPane(Vertical):
    """What ended on this workstation."""

    COLUMNS: ClassVar = (
        TableColumn("at", "When", width=12),
        TableColumn("name", "Name", share=3),
        TableColumn("sender", "From", width=16),
        TableColumn("result", "Result", width=24),
        TableColumn("took", "Took", width=10, from_width=100),
        TableColumn("command", "Command", share=3, from_width=120),
    )

    def __init__(self) -> None:
        super().__init__()
        self._all: tuple[EndedJob, ...] = ()
        self._now = 0.0
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Make the search, the table, and what stands in its place."""
        yield Input(placeholder="Search (/): a name, who sent it, a result", compact=True)
        yield Table(self.COLUMNS, id="history")
        yield Static(id="no-history", classes="empty", markup=False)

    @property
    def table(self) -> Table:
        """The table."""
        return self.query_one("#history", Table)

    @property
    def job(self) -> str:
        """The job under the cursor."""
        return self.table.job

    def show(self, history: tuple[EndedJob, ...], now: float) -> None:
        """Show what of these jobs is searched for."""
        self._all, self._now = history, now
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search."""
        event.stop()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go on in the table."""
        event.stop()
        self.table.focus()

    def _draw(self) -> None:
        wanted = self.query_one(Input).value
        drawn = self._all, wanted, clock(0, self._now)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        jobs = model.found(self._all, wanted)
        self.table.put({job.job: self._cells(job) for job in jobs})
        self.table.display = bool(jobs)
        nothing = self.query_one("#no-history", Static)
        nothing.display = not jobs
        tell(
            nothing,
            "Nothing like that was run here." if wanted else "Nothing was run here yet.",
        )

    def _cells(self, job: EndedJob) -> dict[str, Text]:
        return {
            "at": cell(clock(job.at, self._now)),
            "name": cell(job.name),
            "sender": cell(job.sender),
            "result": cell(model.result(job)),
            "took": cell(length(job.duration) if job.duration is not None else ""),
            "command": cell(job.command),
        }
