"""The tab of what is offered: a table, and the job under its cursor in sentences."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Static

from agents.window import model
from agents.window.memory import Memory
from agents.window.model import OfferRow
from agents.window.snapshot import Offer
from agents.window.table import Table, TableColumn, cell, tell
from agents.window.times import clock, length

_COLUMNS = (
    TableColumn("name", "Name", share=3),
    TableColumn("comment", "Why", share=4, from_width=110),
    TableColumn("sender", "From", width=18, from_width=130),
    TableColumn("kind", "Kind", width=11),
    TableColumn("left", "Time left", width=20),
    TableColumn("expires", "Expires", width=12),
    TableColumn("timeout", "Up to", width=7, from_width=100),
)


class OffersPane(Vertical):
    """What is offered to the user."""

    BUTTONS: ClassVar = {
        "run_now": "Run now",
        "postpone": "Postpone\u2026",
        "remind": "Remind me\u2026",
        "decline": "Decline\u2026",
        "details": "Details",
    }

    def compose(self) -> ComposeResult:
        """Make the table, what stands in its place, and the panel."""
        yield Table(_COLUMNS, id="offers")
        yield Static(id="no-offers", classes="empty", markup=False)
        with Vertical(id="chosen"):
            yield Static(id="chosen-name", markup=False)
            yield Static(id="chosen-why", markup=False)
            yield Static(id="chosen-next", markup=False)
            with Horizontal(id="chosen-buttons"):
                for name, label in self.BUTTONS.items():
                    yield Button(label, id=f"do-{name}", compact=True, action=f"app.{name}")

    @property
    def table(self) -> Table:
        """The table."""
        return self.query_one("#offers", Table)

    @property
    def job(self) -> str:
        """The job under the cursor."""
        return self.table.job

    def show(self, offers: list[Offer], now: float, memory: Memory, empty: str) -> None:
        """Show these offers, in this order."""
        rows = [
            model.offer_row(offer, now, memory.since(offer, now), memory.remind_at(offer.job))
            for offer in offers
        ]
        self.table.put({row.job: _cells(row) for row in rows})
        self.table.display = self.query_one("#chosen").display = bool(rows)
        nothing = self.query_one("#no-offers", Static)
        nothing.display = not rows
        tell(nothing, empty)
        chosen = next((offer for offer in offers if offer.job == self.job), None)
        if chosen:
            self._choose(chosen, now, memory.remind_at(chosen.job))

    def _choose(self, offer: Offer, now: float, remind_at: float) -> None:
        tell(self.query_one("#chosen-name", Static), offer.name)
        why = offer.comment or "(nothing was said)"
        told = f"{offer.sender}: {why}"
        tell(self.query_one("#chosen-why", Static), told)
        tell(self.query_one("#chosen-next", Static), _what_next(offer, now, remind_at))
        for name in self.BUTTONS:
            allowed = name == "details" or model.may(name, offer, now)
            self.query_one(f"#do-{name}", Button).display = allowed


def _what_next(offer: Offer, now: float, remind_at: float) -> str:
    expiry = f"Expires {clock(offer.expires_at, now)}." if offer.expires_at else ""
    takes = f"Takes at most {length(offer.timeout)}."
    return " ".join(filter(None, (model.sentences(offer, now, remind_at), expiry, takes)))


def _cells(row: OfferRow) -> dict[str, Text]:
    style = "bold" if row.urgent else ""
    left = Text(f"{row.bar} {row.left}" if row.bar else row.left, style)
    return {
        "name": cell(f"\u25b6 {row.name}" if row.urgent else row.name, style),
        "comment": cell(row.comment),
        "sender": cell(row.sender),
        "kind": cell(row.kind, style),
        "left": left,
        "expires": cell(row.expires),
        "timeout": cell(row.timeout),
    }
