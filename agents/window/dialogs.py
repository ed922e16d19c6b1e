"""Dialogs about one job. None of them keeps the job from anything: it says so, and closes."""

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
from agents.window.output import OutputView, follow
from agents.window.snapshot import EndedJob, Offer, Snapshot
from agents.window.times import clock, read

_T = TypeVar("_T")
_FAREWELL = 3.0
_LATEST = "latest"


class Dialog(ModalScreen[_T]):
    """A box with a title, which Escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back")]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        """Make the box."""
        with Vertical(id="box"):
            yield Static(self._title, id="box-title", markup=False)
            with Vertical(id="box-body"):
                yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> ComposeResult:
        """Make what is in the box."""
        yield from ()

    def action_back(self) -> None:
        """Close it, with nothing decided."""
        self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        """Close it by a click beside it."""
        if event.widget is self:
            self.dismiss(None)


class OfferDialog(Dialog[_T]):
    """A dialog about an offer; it ends with the offer."""

    def __init__(self, offer: Offer, now: float) -> None:
        super().__init__(offer.name)
        self.offer = offer
        self._now = now
        self._over = False

    async def follow(self, snapshot: Snapshot, now: float) -> None:
        """Take in what became of the job meanwhile."""
        if not self.query("#box-body > *"):
            return  # it is being opened or closed
        offer = snapshot.offer(self.offer.job)
        if offer:
            self.changed(offer, now)
        elif not self._over:
            await self._close(gone(snapshot, self.offer.job))

    def changed(self, offer: Offer, now: float) -> None:
        """Show the offer as it is now."""
        self.offer, self._now = offer, now

    async def _close(self, words: str) -> None:
        self._over = True
        body = self.query_one("#box-body")
        await body.remove_children()
        await body.mount(Static(words, id="box-words", markup=False))
        self.set_timer(_FAREWELL, self._leave)

    def _leave(self) -> None:
        if self.is_current:
            self.dismiss(None)

    def on_key(self, event: events.Key) -> None:
        """Close by any key what has nothing more to ask."""
        if self._over:
            event.stop()
            self._leave()


def gone(snapshot: Snapshot, job: str) -> str:
    """Return what became of a job that is not offered any more."""
    if snapshot.runs(job):
        return "It runs now. There is nothing left to decide."
    if ended := snapshot.ended(job):
        return f"It has ended: {model.result(ended)}"
    return "It is not offered any more: it was withdrawn, or its time is over."


class DetailsDialog(OfferDialog[str]):
    """All about an offer, and what can be done with it; returns the action wanted."""

    def __init__(self, offer: Offer, now: float, remind_at: float) -> None:
        super().__init__(offer, now)
        self._remind_at = remind_at

    def body(self) -> ComposeResult:
        """Make the facts and the buttons."""
        with VerticalScroll(id="facts-box"):
            yield Static(self._facts(), id="facts")
        with Horizontal(classes="buttons"):
            ready = self.offer.state != "accepted"
            yield Button(
                "Run now", id="run_now", variant="primary", compact=True, disabled=not ready
            )
            yield Button("Back", id="back", compact=True)

    def changed(self, offer: Offer, now: float) -> None:
        """Count down."""
        super().changed(offer, now)
        for shown in self.query("#facts").results(Static):
            shown.update(self._facts())

    def _facts(self) -> Table:
        return facts(model.offer_facts(self.offer, self._now, self._remind_at))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return what is wanted."""
        self.dismiss(event.button.id if event.button.id != "back" else None)


def facts(rows: list[tuple[str, str]]) -> Table:
    """Return pairs as lines, the words of one width."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, told in rows:
        table.add_row(Text(name), Text(told))
    return table


class TimeDialog(OfferDialog[float]):
    """Asks for a time, by choices that become fewer or in the user's own words; returns it."""

    def __init__(self, offer: Offer, now: float, *, remind: bool) -> None:
        super().__init__(offer, now)
        self._remind = remind

    def body(self) -> ComposeResult:
        """Make the choices and the field."""
        question = "Remind me in" if self._remind else "Postpone it for"
        yield Static(question, classes="question", markup=False)
        yield OptionList(*self._options(), id="choices", compact=True, markup=False)
        yield Static("or until, or for:", classes="question", markup=False)
        yield Input(placeholder="14:30, 45m or 2h", id="own-time", compact=True)
        yield Static("", id="wrong", markup=False)

    def _options(self) -> list[Option]:
        choices = model.reminders if self._remind else model.postponements
        options = [
            Option(
                f"{model.whole(seconds)}, until {clock(self._now + seconds, self._now)}",
                id=str(int(seconds)),
            )
            for seconds in choices(self.offer, self._now)
        ]
        if not self._remind and self.offer.limit < math.inf:
            latest = clock(self.offer.limit, self._now)
            options.append(Option(f"as long as possible, until {latest}", id=_LATEST))
        return options

    def changed(self, offer: Offer, now: float) -> None:
        """Take away the choices that are over."""
        super().changed(offer, now)
        options = self._options()
        shown = self.query(OptionList).first()
        if [(o.id, o.prompt) for o in options] != [(o.id, o.prompt) for o in shown.options]:
            at = shown.highlighted_option
            shown.set_options(options)
            places = [option.id for option in options]
            shown.highlighted = places.index(at.id) if at and at.id in places else None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the time chosen."""
        chosen = event.option.id or "0"
        self.dismiss(self.offer.limit if chosen == _LATEST else self._now + float(chosen))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the time written, if it can be."""
        try:
            until = read(event.value, self._now)
            self._check(until)
        except ValueError as error:
            self.query_one("#wrong", Static).update(str(error))
        else:
            self.dismiss(until)

    def _check(self, until: float) -> None:
        if until > self.offer.limit:
            limit = clock(self.offer.limit, self._now)
            raise ValueError(f"It must not be after {limit}.")
        least = 0.0 if self._remind else self.offer.min_interval or 0.0
        if until < min(self._now + least, self.offer.limit):
            raise ValueError(f"It must be {model.whole(least)} at least.")


class DeclineDialog(OfferDialog[str]):
    """Asks why an optional job is not wanted; returns the reason."""

    def body(self) -> ComposeResult:
        """Make the question."""
        yield Static("Why do you not want it? Your administrator reads this.", classes="question")
        yield Input(placeholder="(a few words)", id="reason", max_length=1000, compact=True)
        with Horizontal(classes="buttons"):
            yield Button("Decline", id="decline", variant="warning", compact=True)
            yield Button("Back", id="back", compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the reason."""
        self.dismiss(event.value.strip())

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the reason, or nothing."""
        wanted = event.button.id == "decline"
        self.dismiss(self.query_one(Input).value.strip() if wanted else None)


class QuestionDialog(Dialog[bool]):
    """Asks for a yes."""

    def __init__(self, title: str, question: str, yes: str) -> None:
        super().__init__(title)
        self._question = question
        self._yes = yes

    def body(self) -> ComposeResult:
        """Make the question."""
        yield Static(self._question, classes="question", markup=False)
        with Horizontal(classes="buttons"):
            yield Button(self._yes, id="yes", variant="warning", compact=True)
            yield Button("Back", id="back", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the answer."""
        self.dismiss(event.button.id == "yes")


class EndedDialog(Dialog[None]):
    """All about a job that ended, with what it wrote."""

    def __init__(self, job: EndedJob, now: float, client: Client) -> None:
        super().__init__(job.name)
        self._job = job
        self._now = now
        self._client = client

    def body(self) -> ComposeResult:
        """Make the facts and the output."""
        yield Static(facts(model.ended_facts(self._job, self._now)), id="facts")
        yield OutputView(id="ended-output")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)

    def on_mount(self) -> None:
        """Ask for the output."""
        view = self.query_one(OutputView)
        view.start("It wrote nothing.")
        if self._job.duration is not None:
            work = follow(view, self._client, self._job.job)
            self.run_worker(work, exit_on_error=False)

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close it."""
        self.dismiss(None)


class HelpDialog(Dialog[None]):
    """What each key does."""

    def __init__(self, keys: list[tuple[str, str]]) -> None:
        super().__init__("Help")
        self._keys = keys

    def body(self) -> ComposeResult:
        """Make the list."""
        with VerticalScroll(id="facts-box"):
            yield Static(facts(self._keys), id="facts")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)

    def on_button_pressed(self, _event: Button.Pressed) -> None:
        """Close it."""
        self.dismiss(None)
