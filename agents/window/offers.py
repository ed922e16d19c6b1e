"""The tab of the offers: a table, and a panel about the job under its cursor."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Static

from agents.window import model
from agents.window.model import OfferRow
from agents.window.offer_tracker import OfferTracker
from agents.window.snapshot import Offer
from agents.window.table import Table, TableColumn, cell, set_text
from agents.window.times import clock, duration

_COLUMNS = (
    TableColumn("name", "Name", share=3),
    TableColumn("comment", "Comment", share=4, from_width=110),
    TableColumn("sender", "Sender", width=18, from_width=130),
    TableColumn("requirement", "Requirement", width=11),
    TableColumn("time_left", "Time left", width=20),
    TableColumn("expires", "Expires", width=12),
    TableColumn("timeout", "Limit", width=7, from_width=100),
)


class OffersPane(Vertical):
    """The jobs that are offered to the user."""

    BUTTONS: ClassVar = {
        "run_now": "Run now",
        "postpone": "Postpone\u2026",
        "remind": "Remind me\u2026",
        "decline": "Decline\u2026",
        "details": "Details",
    }

    def compose(self) -> ComposeResult:
        """Create the table, the text shown in its place, and the panel."""
        yield Table(_COLUMNS, id="offers")
        yield Static(id="no-offers", classes="empty", markup=False)
        with Vertical(id="chosen"):
            yield Static(id="chosen-name", markup=False)
            yield Static(id="chosen-comment", markup=False)
            yield Static(id="chosen-next", markup=False)
            with Horizontal(id="chosen-buttons"):
                for name, label in self.BUTTONS.items():
                    yield Button(label, id=f"do-{name}", compact=True, action=f"app.{name}")

    @property
    def table(self) -> Table:
        """The table of offers."""
        return self.query_one("#offers", Table)

    @property
    def job(self) -> str:
        """The job under the cursor."""
        return self.table.job

    def show(self, offers: list[Offer], now: float, tracker: OfferTracker, empty: str) -> None:
        """Show these offers in this order; `empty` is shown if there are none."""
        rows = [
            model.offer_row(offer, now, tracker.since(offer, now), tracker.remind_at(offer.job))
            for offer in offers
        ]
        self.table.put({row.job: _cells(row) for row in rows})
        self.table.display = self.query_one("#chosen").display = bool(rows)
        placeholder = self.query_one("#no-offers", Static)
        placeholder.display = not rows
        set_text(placeholder, empty)
        chosen = next((offer for offer in offers if offer.job == self.job), None)
        if chosen:
            self._show_details(chosen, now, tracker.remind_at(chosen.job))

    def _show_details(self, offer: Offer, now: float, remind_at: float) -> None:
        set_text(self.query_one("#chosen-name", Static), offer.name)
        comment = f"{offer.sender}: {offer.comment or '(no comment)'}"
        set_text(self.query_one("#chosen-comment", Static), comment)
        set_text(self.query_one("#chosen-next", Static), _next_text(offer, now, remind_at))
        for name in self.BUTTONS:
            allowed = name == "details" or model.is_allowed(name, offer, now)
            self.query_one(f"#do-{name}", Button).display = allowed


def _next_text(offer: Offer, now: float, remind_at: float) -> str:
    expiry = f"Expires {clock(offer.expires_at, now)}." if offer.expires_at else ""
    limit = f"Time limit {duration(offer.timeout)}."
    return " ".join(filter(None, (model.next_steps(offer, now, remind_at), expiry, limit)))


def _cells(row: OfferRow) -> dict[str, Text]:
    style = "bold" if row.urgent else ""
    time_left = Text(f"{row.bar} {row.time_left}" if row.bar else row.time_left, style)
    return {
        "name": cell(f"\u25b6 {row.name}" if row.urgent else row.name, style),
        "comment": cell(row.comment),
        "sender": cell(row.sender),
        "requirement": cell(row.requirement, style),
        "time_left": time_left,
        "expires": cell(row.expires),
        "timeout": cell(row.timeout),
    }
