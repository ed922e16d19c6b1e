"""The window itself: three tabs, a line for what is not as always, and the keys."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane

from agents.window import model
from agents.window.client import Client, Gone, RequestDeclined
from agents.window.dialogs import (
    DeclineDialog,
    DetailsDialog,
    EndedDialog,
    HelpDialog,
    OfferDialog,
    QuestionDialog,
    TimeDialog,
)
from agents.window.history import HistoryPane
from agents.window.memory import Memory
from agents.window.offers import OffersPane
from agents.window.running import RunningPane
from agents.window.snapshot import Offer, Snapshot
from agents.window.table import tell
from agents.window.themes import DARK, LIGHT

_SAID_FOR = 8.0
_OFFER_KEYS = frozenset({"run_now", "postpone", "remind", "decline"})


class Window(App[None]):
    """Shows what an interactive agent offers, runs and ran, and tells it what its user decides."""

    CSS_PATH = "window.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "run_now", "Run now"),
        Binding("p", "postpone", "Postpone"),
        Binding("m", "remind", "Remind"),
        Binding("x", "decline", "Decline"),
        Binding("d", "details", "Details"),
        Binding("s", "stop", "Stop"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("1", "tab('offers-tab')", "Offers", show=False),
        Binding("2", "tab('running-tab')", "Running", show=False),
        Binding("3", "tab('history-tab')", "History", show=False),
        Binding("t", "other_theme", "Light or dark", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Close"),
    ]

    def __init__(
        self,
        client: Client,
        *,
        owner: bool = False,
        light: bool = False,
        now: Callable[[], float] = time.time,
        tick: float = 1.0,
    ) -> None:
        """Make a window.

        Args:
            client: speaks to the agent.
            owner: whether the agent ends with the window.
            light: whether it is bright.
            now: tells the time, in seconds since the epoch.
            tick: after how many seconds countdowns are drawn again.
        """
        super().__init__()
        self.title = "Package Command Manager"
        self.animation_level = "none"
        self._client = client
        self._owner = owner
        self._light = light
        self._now = now
        self._tick = tick
        self._opened_at = now()
        self._snapshot: Snapshot | None = None
        self._reached = False
        self._memory = Memory()
        self._keys: tuple[object, ...] = ()
        self._wanted = ""
        self._said = ("", 0.0)
        self.rings = 0

    def compose(self) -> ComposeResult:
        """Make all that is always there."""
        with Horizontal(id="head"):
            yield Static(self.title, id="head-title", markup=False)
            yield Static("", id="head-place", markup=False)
        with TabbedContent(id="tabs"):
            with TabPane("Offers", id="offers-tab"):
                yield OffersPane()
            with TabPane("Running", id="running-tab"):
                yield RunningPane(self._client)
            with TabPane("History", id="history-tab"):
                yield HistoryPane()
        yield Static("", id="status", markup=False)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Begin to watch the agent."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self._set_theme()
        self.set_interval(self._tick, self.draw)
        self.offers.table.focus()
        self._watch()

    @property
    def offers(self) -> OffersPane:
        """The tab of offers."""
        return self.screen_stack[0].query_one(OffersPane)

    @property
    def running(self) -> RunningPane:
        """The tab of what runs."""
        return self.screen_stack[0].query_one(RunningPane)

    @property
    def history(self) -> HistoryPane:
        """The tab of what was run."""
        return self.screen_stack[0].query_one(HistoryPane)

    @property
    def tabs(self) -> TabbedContent:
        """The tabs."""
        return self.screen_stack[0].query_one(TabbedContent)

    @work(group="watch")
    async def _watch(self) -> None:
        async for snapshot in self._client.watch():
            gone = snapshot is None
            if not gone:
                self._snapshot = snapshot
            self._reached = not gone
            await self.draw()

    async def draw(self) -> None:
        """Show everything as it is now."""
        if not (self.screen_stack and self.screen_stack[0].query("#status")):
            return  # it is being closed
        now = self._now()
        self._draw_status(now)
        if self._snapshot is None:
            return
        snapshot = self._snapshot
        if self._memory.take(snapshot, now):
            self._ring()
        self._draw_tabs(snapshot, now)
        self._show_wanted(snapshot)
        self._refresh_keys()
        for screen in self.screen_stack:
            if isinstance(screen, OfferDialog):
                await screen.follow(snapshot, now)

    def _draw_tabs(self, snapshot: Snapshot, now: float) -> None:
        offers = model.sorted_offers(snapshot.offers, now, self._memory.reminders)
        self.offers.show(
            offers, now, self._memory, "Nothing to do. What is offered to you appears here."
        )
        rows = model.run_rows(snapshot, now, self._opened_at)
        self.running.show(rows, "Nothing runs.")
        self.history.show(snapshot.history, now)
        place = f"{snapshot.user} on {snapshot.workstation}"
        tell(self.screen_stack[0].query_one("#head-place", Static), place)
        for tab, name, count in (
            ("offers-tab", "Offers", len(snapshot.offers)),
            ("running-tab", "Running", len(snapshot.running)),
        ):
            label = f"{name} ({count})" if count else name
            shown = self.tabs.get_tab(tab)
            if shown.label.plain != label:
                shown.label = label

    def _draw_status(self, now: float) -> None:
        told = model.quiet(self._snapshot if self._reached else None, now)
        said, until = self._said
        if until > time.monotonic():
            told.insert(0, said)
        status = self.screen_stack[0].query_one("#status", Static)
        status.display = bool(told)
        tell(status, " \u00b7 ".join(told))

    def _ring(self) -> None:
        """Ring, and show what is first in the table."""
        self.rings += 1
        self.bell()
        self.call_after_refresh(self.offers.table.scroll_home, animate=False)

    def _refresh_keys(self) -> None:
        """Draw the keys again if others have something to do."""
        names = (*sorted(_OFFER_KEYS), "details", "stop", "search")
        keys = tuple(self.check_action(name, ()) for name in names)
        if keys != self._keys:
            self._keys = keys
            self.refresh_bindings()

    def _show_wanted(self, snapshot: Snapshot) -> None:
        """Show the job that the user has just started, as soon as it runs."""
        if not self._wanted or len(self.screen_stack) > 1:
            return
        if snapshot.runs(self._wanted) or snapshot.ended(self._wanted):
            self.action_tab("running-tab")
            self.running.table.point_at(self._wanted)
            self._wanted = ""

    async def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """Tell about the job under the cursor."""
        await self.draw()

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        """Tell all about a job."""
        self.action_details()

    def on_tabbed_content_tab_activated(self, _event: TabbedContent.TabActivated) -> None:
        """The keys are others now."""
        self._refresh_keys()

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key has something to do now; others are not shown."""
        if self._snapshot is None:
            return True
        tab = self.tabs.active
        if action in _OFFER_KEYS:
            return tab == "offers-tab" and self._may(action)
        if action == "details":
            return tab != "running-tab" and bool(self._pane.job)
        if action == "stop":
            return tab == "running-tab" and self._may_stop()
        if action == "search":
            return tab == "history-tab"
        return super().check_action(action, parameters)

    @property
    def _pane(self) -> OffersPane | RunningPane | HistoryPane:
        if self.tabs.active == "running-tab":
            return self.running
        return self.history if self.tabs.active == "history-tab" else self.offers

    @property
    def _offer(self) -> Offer | None:
        return self._snapshot.offer(self.offers.job) if self._snapshot else None

    def _may(self, action: str) -> bool:
        offer = self._offer
        return offer is not None and model.may(action, offer, self._now())

    def _may_stop(self) -> bool:
        if self._snapshot is None:
            return False
        return any(job.may_stop for job in self._snapshot.running if job.job == self.running.job)

    @work(group="ask")
    async def _ask(self, do: str, job: str, **more: Any) -> None:
        try:
            said = await self._client.ask({"do": do, "job": job, **more})
            if do == "run":
                self._wanted = job
            elif do == "remind":
                self._memory.reminders[job] = self._now() + more["after"]
        except (RequestDeclined, Gone) as error:
            said = str(error)
        self._said = (said, time.monotonic() + _SAID_FOR)
        await self.draw()

    def action_run_now(self) -> None:
        """Run the job under the cursor."""
        self._ask("run", self.offers.job)

    @work(group="dialog", exclusive=True)
    async def action_postpone(self) -> None:
        """Ask until when to postpone."""
        if offer := self._offer:
            until = await self.push_screen_wait(TimeDialog(offer, self._now(), remind=False))
            if until is not None:
                self._ask(
                    "postpone", offer.job, until=datetime.fromtimestamp(until, UTC).isoformat()
                )

    @work(group="dialog", exclusive=True)
    async def action_remind(self) -> None:
        """Ask when to remind."""
        if offer := self._offer:
            at = await self.push_screen_wait(TimeDialog(offer, self._now(), remind=True))
            if at is not None:
                self._ask("remind", offer.job, after=at - self._now())

    @work(group="dialog", exclusive=True)
    async def action_decline(self) -> None:
        """Ask why."""
        if offer := self._offer:
            reason = await self.push_screen_wait(DeclineDialog(offer, self._now()))
            if reason is not None:
                self._ask("decline", offer.job, reason=reason)

    @work(group="dialog", exclusive=True)
    async def action_details(self) -> None:
        """Tell all about the job under the cursor."""
        now, job = self._now(), self._pane.job
        if self.tabs.active == "offers-tab" and (offer := self._offer):
            dialog = DetailsDialog(offer, now, self._memory.remind_at(job))
            if await self.push_screen_wait(dialog) == "run_now":
                self._ask("run", offer.job)
        elif self._snapshot and (ended := self._snapshot.ended(job)):
            await self.push_screen_wait(EndedDialog(ended, now, self._client))

    @work(group="dialog", exclusive=True)
    async def action_stop(self) -> None:
        """Stop the job under the cursor, if the user is sure."""
        job = self.running.job
        row = (
            next((row for row in self._snapshot.running if row.job == job), None)
            if self._snapshot
            else None
        )
        if row:
            question = QuestionDialog(
                row.name, "Stop it? What it has done so far stays done.", "Stop"
            )
            if await self.push_screen_wait(question):
                self._ask("stop", job)

    def action_search(self) -> None:
        """Go to the search."""
        self.history.query_one(Input).focus()

    def action_tab(self, tab: str) -> None:
        """Show a tab, with the cursor in its table."""
        self.tabs.active = tab
        self._pane.table.focus()

    def action_other_theme(self) -> None:
        """Change between light and dark."""
        self._light = not self._light
        self._set_theme()

    def _set_theme(self) -> None:
        self.theme = (LIGHT if self._light else DARK).name

    @work(group="dialog", exclusive=True)
    async def action_help(self) -> None:
        """Tell what each key does."""
        await self.push_screen_wait(HelpDialog(_help()))

    async def action_quit(self) -> None:
        """Close the window; ask before that ends what runs."""
        self._leave()

    def action_help_quit(self) -> None:
        """Close the window by Ctrl-C, too."""
        self._leave()

    @work(group="dialog", exclusive=True)
    async def _leave(self) -> None:
        running = len(self._snapshot.running) if self._snapshot else 0
        if self._owner and running:
            text = "What runs is stopped when you close this window."
            question = QuestionDialog("Close?", text, "Stop it and close")
            if not await self.push_screen_wait(question):
                return
        self.exit()


def _help() -> list[tuple[str, str]]:
    return [
        ("r", "run the chosen job now"),
        ("p", "postpone it; a required job still runs by itself in the end"),
        ("m", "be reminded of it later; nothing else changes"),
        ("x", "decline an optional job, and say why"),
        ("d or Enter", "everything about the job"),
        ("s", "stop a running job, where that is allowed"),
        ("1 2 3", "offers, what runs, what was run"),
        ("/", "search in what was run"),
        ("arrows, Tab", "choose a job; go on to the next part"),
        ("t", "light or dark"),
        ("Escape", "leave a question without an answer"),
        ("q", "close this window"),
        ("\u25cf", "required: runs by itself when its time has come"),
        ("\u25cb", "optional: runs only if you want it"),
    ]
