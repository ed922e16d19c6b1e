"""The tab of the running jobs: their live output, and their results."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Static

from agents.window.client import Client
from agents.window.model import RunRow
from agents.window.output import OutputView, show_output
from agents.window.table import Table, TableColumn, cell, set_text


class RunningPane(Vertical):
    """The jobs that run, and those that ended while the window was open."""

    COLUMNS: ClassVar = (
        TableColumn("name", "Name", share=3),
        TableColumn("elapsed", "Time", width=14),
        TableColumn("state", "State", share=2),
    )

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._followed = ""

    def compose(self) -> ComposeResult:
        """Create the table, the output, and the button below."""
        yield Table(self.COLUMNS, id="running")
        yield Static(id="no-running", classes="empty", markup=False)
        yield OutputView(id="output")
        with Horizontal(id="running-buttons"):
            yield Static(id="running-state", markup=False)
            yield Button("Stop\u2026", id="do-stop", compact=True, action="app.stop")

    @property
    def table(self) -> Table:
        """The table of jobs."""
        return self.query_one("#running", Table)

    @property
    def job(self) -> str:
        """The job under the cursor."""
        return self.table.job

    def show(self, rows: list[RunRow], empty: str) -> None:
        """Show these jobs, and the output of the job under the cursor."""
        self.table.put({row.job: _cells(row) for row in rows})
        placeholder = self.query_one("#no-running", Static)
        set_text(placeholder, empty)
        placeholder.display = not rows
        self.table.display = self.query_one("#running-buttons").display = bool(rows)
        self.query_one("#output").display = bool(rows)
        chosen = next((row for row in rows if row.job == self.job), None)
        if chosen:
            self._show_state(chosen)
        self._follow(self.job)

    def _show_state(self, row: RunRow) -> None:
        legend = "lines with ! are from stderr"
        set_text(self.query_one("#running-state", Static), f"{row.state} \u00b7 {legend}")
        self.query_one("#do-stop").display = row.may_stop and row.is_running

    def _follow(self, job: str) -> None:
        if job == self._followed:
            return
        self._followed = job
        view = self.query_one(OutputView)
        view.start("No output yet.")
        if job:
            work = show_output(view, self._client, job)
            self.run_worker(work, group="output", exclusive=True, exit_on_error=False)


def _cells(row: RunRow) -> dict[str, Text]:
    style = "bold" if row.is_running else ""
    sign = "\u25b6" if row.is_running else " "
    return {
        "name": cell(f"{sign} {row.name}", style),
        "elapsed": cell(row.elapsed),
        "state": cell(row.state),
    }
