"""The dialogs about a job. A dialog never delays its job: when the offer ends, it closes."""

import math
from typing import ClassVar, TypeVar

from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from agents.window import model
from agents.window.client import Client
from agents.window.output import OutputView, show_output
from agents.window.snapshot import EndedJob, Offer, Snapshot
from agents.window.times import clock, parse_time

_T = TypeVar("_T")
_CLOSING_DELAY = 3.0
_LATEST = "latest"


class Dialog(ModalScreen[_T]):
    """A box with a title; Escape closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back")]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        """Create the box."""
        with Vertical(id="box"):
            yield Static(self._title, id="box-title", markup=False)
            with Vertical(id="box-body"):
                yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> ComposeResult:
        """Create the content of the box."""
        yield from ()

    def action_back(self) -> None:
        """Close the dialog without an answer."""
        self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        """Close the dialog on a click outside the box."""
        if event.widget is self:
            self.dismiss(None)


class OfferDialog(Dialog[_T]):
    """A dialog about an offer; it closes when the offer ends."""

    def __init__(self, offer: Offer, now: float) -> None:
        super().__init__(offer.name)
        self.offer = offer
        self._now = now
        self._offer_ended = False

    async def follow(self, snapshot: Snapshot, now: float) -> None:
        """Update the dialog from a new snapshot."""
        if not self.query("#box-body > *"):
            return  # the dialog is being opened or closed
        offer = snapshot.offer(self.offer.job)
        if offer:
            self.changed(offer, now)
        elif not self._offer_ended:
            await self._show_end(end_text(snapshot, self.offer.job))

    def changed(self, offer: Offer, now: float) -> None:
        """Show the changed offer."""
        self.offer, self._now = offer, now

    async def _show_end(self, text: str) -> None:
        self._offer_ended = True
        body = self.query_one("#box-body")
        await body.remove_children()
        await body.mount(Static(text, id="box-message", markup=False))
        self.set_timer(_CLOSING_DELAY, self._close_dialog)

    def _close_dialog(self) -> None:
        if self.is_current:
            self.dismiss(None)

    def on_key(self, event: events.Key) -> None:
        """Close the dialog on any key once the offer has ended."""
        if self._offer_ended:
            event.stop()
            self._close_dialog()


def end_text(snapshot: Snapshot, job: str) -> str:
    """Return why a job is not offered anymore."""
    if snapshot.runs(job):
        return "The job is running now."
    if ended := snapshot.ended(job):
        return f"The job has ended: {model.format_result(ended)}"
    return "The job is no longer offered: it was cancelled or has expired."


class DetailsDialog(OfferDialog[str]):
    """The details of an offer, with a button to run it; returns the chosen action."""

    def __init__(self, offer: Offer, now: float, remind_at: float) -> None:
        super().__init__(offer, now)
        self._remind_at = remind_at

    def body(self) -> ComposeResult:
        """Create the details and the buttons."""
        with VerticalScroll(id="facts-box"):
            yield Static(self._facts(), id="facts")
        with Horizontal(classes="buttons"):
            accepted = self.offer.state == "accepted"
            yield Button(
                "Run now", id="run_now", variant="primary", compact=True, disabled=accepted
            )
            yield Button("Back", id="back", compact=True)

    def changed(self, offer: Offer, now: float) -> None:
        """Update the countdown."""
        super().changed(offer, now)
        for widget in self.query("#facts").results(Static):
            widget.update(self._facts())

    def _facts(self) -> Table:
        return facts(model.offer_facts(self.offer, self._now, self._remind_at))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the chosen action."""
        self.dismiss(event.button.id if event.button.id != "back" else None)


def facts(rows: list[tuple[str, str]]) -> Table:
    """Return a grid of labels and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    return table


class TimeDialog(OfferDialog[float]):
    """Asks for a time, chosen from a list or entered as text; returns it."""

    def __init__(self, offer: Offer, now: float, *, remind: bool) -> None:
        super().__init__(offer, now)
        self._remind = remind

    def body(self) -> ComposeResult:
        """Create the choices and the input field."""
        question = "Remind me in" if self._remind else "Postpone it for"
        yield Static(question, classes="question", markup=False)
        yield OptionList(*self._options(), id="choices", compact=True, markup=False)
        yield Static("or enter a time or a duration:", classes="question", markup=False)
        yield Input(placeholder="14:30, 45m or 2h", id="entered-time", compact=True)
        yield Static("", id="error", markup=False)

    def _options(self) -> list[Option]:
        choices = model.reminders if self._remind else model.postponements
        options = [
            Option(
                f"{model.duration_words(seconds)}, until {clock(self._now + seconds, self._now)}",
                id=str(int(seconds)),
            )
            for seconds in choices(self.offer, self._now)
        ]
        if not self._remind and self.offer.limit < math.inf:
            latest = clock(self.offer.limit, self._now)
            options.append(Option(f"as long as possible, until {latest}", id=_LATEST))
        return options

    def changed(self, offer: Offer, now: float) -> None:
        """Remove the choices that are no longer possible."""
        super().changed(offer, now)
        options = self._options()
        for choices in self.query(OptionList).results(OptionList):  # none while the dialog closes
            if [(o.id, o.prompt) for o in options] != [(o.id, o.prompt) for o in choices.options]:
                chosen = choices.highlighted_option
                choices.set_options(options)
                ids = [option.id for option in options]
                choices.highlighted = ids.index(chosen.id) if chosen and chosen.id in ids else None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen time."""
        chosen = event.option.id or "0"
        self.dismiss(self.offer.limit if chosen == _LATEST else self._now + float(chosen))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the entered time, or show why it is invalid."""
        try:
            until = parse_time(event.value, self._now)
            self._check(until)
        except ValueError as error:
            self.query_one("#error", Static).update(str(error))
        else:
            self.dismiss(until)

    def _check(self, until: float) -> None:
        if until > self.offer.limit:
            limit = clock(self.offer.limit, self._now)
            raise ValueError(f"It must not be after {limit}.")
        minimum = 0.0 if self._remind else self.offer.min_interval or 0.0
        if until < min(self._now + minimum, self.offer.limit):
            raise ValueError(f"It must be at least {model.duration_words(minimum)}.")


class DeclineDialog(OfferDialog[str]):
    """Asks why the user declines an optional job; returns the reason."""

    def body(self) -> ComposeResult:
        """Create the question."""
        text = "Why do you decline it? Your administrator sees the reason."
        yield Static(text, classes="question")
        yield Input(placeholder="(a few words)", id="reason", max_length=1000, compact=True)
        with Horizontal(classes="buttons"):
            yield Button("Decline", id="decline", variant="warning", compact=True)
            yield Button("Back", id="back", compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the reason."""
        self.dismiss(event.value.strip())

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the reason, or None for Back."""
        declined = event.button.id == "decline"
        self.dismiss(self.query_one(Input).value.strip() if declined else None)


class QuestionDialog(Dialog[bool]):
    """Asks for a confirmation."""

    def __init__(self, title: str, question: str, yes: str) -> None:
        super().__init__(title)
        self._question = question
        self._yes = yes

    def body(self) -> ComposeResult:
        """Create the question."""
        yield Static(self._question, classes="question", markup=False)
        with Horizontal(classes="buttons"):
            yield Button(self._yes, id="yes", variant="warning", compact=True)
            yield Button("Back", id="back", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the answer."""
        self.dismiss(event.button.id == "yes")


class EndedDialog(Dialog[None]):
    """The details of a job that ended, with its output."""

    def __init__(self, job: EndedJob, now: float, client: Client) -> None:
        super().__init__(job.name)
        self._job = job
        self._now = now
        self._client = client

    def body(self) -> ComposeResult:
        """Create the details and the output."""
        yield Static(facts(model.ended_facts(self._job, self._now)), id="facts")
        yield OutputView(id="ended-output")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)

    def on_mount(self) -> None:
        """Load the output."""
        view = self.query_one(OutputView)
        view.start("No output.")
        if self._job.duration is not None:
            work = show_output(view, self._client, self._job.job)
            self.run_worker(work, exit_on_error=False)

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close the dialog."""
        self.dismiss(None)


class HelpDialog(Dialog[None]):
    """The list of keys."""

    def __init__(self, keys: list[tuple[str, str]]) -> None:
        super().__init__("Help")
        self._keys = keys

    def body(self) -> ComposeResult:
        """Create the list."""
        with VerticalScroll(id="facts-box"):
            yield Static(facts(self._keys), id="facts")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close the dialog."""
        self.dismiss(None)
