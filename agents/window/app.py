"""The window's application: three tabs, a status line, and the key bindings."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import DescendantFocus
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane

from agents.window import model
from agents.window.client import ActionRejected, AgentUnavailable, Client
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
from agents.window.offer_tracker import OfferTracker
from agents.window.offers import OffersPane
from agents.window.running import RunningPane
from agents.window.snapshot import Offer, Snapshot
from agents.window.table import set_text
from agents.window.themes import DARK, LIGHT

_MESSAGE_TIME = 8.0
_OFFER_KEYS = frozenset({"run_now", "postpone", "remind", "decline"})


class ChosenTab(TabPane):
    """A tab that is shown when the user or the window chooses it, and not by the focus in it."""

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Keep Textual from showing this tab again.

        When the focused button disappears with its tab, Textual gives the focus to the button
        beside it, and would show the tab that it is in.
        """
        event.prevent_default()


class Window(App[None]):
    """Shows an agent's offered, running and ended jobs, and sends it the user's actions."""

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
        """Create a window.

        Args:
            client: the client of the agent.
            owner: whether the agent ends with the window.
            light: whether to use the light theme.
            now: returns the time, in seconds since the epoch.
            tick: seconds between two updates of the countdowns.
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
        self._is_connected = False
        self._tracker = OfferTracker()
        self._keys: tuple[object, ...] = ()
        self._started_job = ""
        self._message = ("", 0.0)
        self.rings = 0

    def compose(self) -> ComposeResult:
        """Create the title, the tabs, the status line and the footer."""
        with Horizontal(id="head"):
            yield Static(self.title, id="head-title", markup=False)
            yield Static("", id="head-identity", markup=False)
        with TabbedContent(id="tabs"):
            with ChosenTab("Offers", id="offers-tab"):
                yield OffersPane()
            with ChosenTab("Running", id="running-tab"):
                yield RunningPane(self._client)
            with ChosenTab("History", id="history-tab"):
                yield HistoryPane()
        yield Static("", id="status", markup=False)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Start to watch the agent."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self._set_theme()
        self.set_interval(self._tick, self.draw)
        self.offers.table.focus()
        self._watch()

    @property
    def offers(self) -> OffersPane:
        """The tab of the offers."""
        return self.screen_stack[0].query_one(OffersPane)

    @property
    def running(self) -> RunningPane:
        """The tab of the running jobs."""
        return self.screen_stack[0].query_one(RunningPane)

    @property
    def history(self) -> HistoryPane:
        """The tab of the ended jobs."""
        return self.screen_stack[0].query_one(HistoryPane)

    @property
    def tabs(self) -> TabbedContent:
        """The tabs."""
        return self.screen_stack[0].query_one(TabbedContent)

    @work(group="watch")
    async def _watch(self) -> None:
        async for snapshot in self._client.watch():
            self._is_connected = snapshot is not None
            if snapshot is not None:
                self._snapshot = snapshot
            await self.draw()

    async def draw(self) -> None:
        """Update all parts of the window."""
        if not (self.screen_stack and self.screen_stack[0].query("#status")):
            return  # the window is being closed
        now = self._now()
        self._draw_status(now)
        if self._snapshot is None:
            return
        snapshot = self._snapshot
        if self._tracker.update(snapshot, now):
            self._ring()
        self._draw_tabs(snapshot, now)
        self._show_started_job(snapshot)
        self._refresh_keys()
        for screen in self.screen_stack:
            if isinstance(screen, OfferDialog):
                await screen.follow(snapshot, now)

    def _draw_tabs(self, snapshot: Snapshot, now: float) -> None:
        offers = model.sorted_offers(snapshot.offers, now, self._tracker.reminders)
        self.offers.show(offers, now, self._tracker, "No offers. New offers appear here.")
        rows = model.run_rows(snapshot, now, self._opened_at)
        self.running.show(rows, "No command is running.")
        self.history.show(snapshot.history, now)
        identity = f"{snapshot.user} on {snapshot.workstation}"
        set_text(self.screen_stack[0].query_one("#head-identity", Static), identity)
        for tab, name, count in (
            ("offers-tab", "Offers", len(snapshot.offers)),
            ("running-tab", "Running", len(snapshot.running)),
        ):
            label = f"{name} ({count})" if count else name
            widget = self.tabs.get_tab(tab)
            if widget.label.plain != label:
                widget.label = label

    def _draw_status(self, now: float) -> None:
        messages = model.status_messages(self._snapshot if self._is_connected else None, now)
        message, until = self._message
        if until > time.monotonic():
            messages.insert(0, message)
        status = self.screen_stack[0].query_one("#status", Static)
        status.display = bool(messages)
        set_text(status, " \u00b7 ".join(messages))

    def _ring(self) -> None:
        """Ring the bell, and scroll to the first offer."""
        self.rings += 1
        self.bell()
        self.call_after_refresh(self.offers.table.scroll_home, animate=False)

    def _refresh_keys(self) -> None:
        """Redraw the footer if the available actions changed."""
        names = (*sorted(_OFFER_KEYS), "details", "stop", "search")
        keys = tuple(self.check_action(name, ()) for name in names)
        if keys != self._keys:
            self._keys = keys
            self.refresh_bindings()

    def _show_started_job(self, snapshot: Snapshot) -> None:
        """Show the job that the user has just started, as soon as it runs."""
        if not self._started_job or len(self.screen_stack) > 1:
            return
        if snapshot.runs(self._started_job) or snapshot.ended(self._started_job):
            self.action_tab("running-tab")
            self.running.table.point_at(self._started_job)
            self._started_job = ""

    async def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """Show the job under the cursor."""
        await self.draw()

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        """Show the details of a job."""
        self.action_details()

    def on_tabbed_content_tab_activated(self, _event: TabbedContent.TabActivated) -> None:
        """Update the footer for the new tab."""
        self._refresh_keys()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether an action is available; the footer hides the others."""
        if self._snapshot is None:
            return True
        tab = self.tabs.active
        if action in _OFFER_KEYS:
            return tab == "offers-tab" and self._is_allowed(action)
        if action == "details":
            return tab != "running-tab" and bool(self._pane.job)
        if action == "stop":
            return tab == "running-tab" and self._can_stop()
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

    def _is_allowed(self, action: str) -> bool:
        offer = self._offer
        return offer is not None and model.is_allowed(action, offer, self._now())

    def _can_stop(self) -> bool:
        if self._snapshot is None:
            return False
        return any(job.may_stop for job in self._snapshot.running if job.job == self.running.job)

    @work(group="ask")
    async def _ask(self, do: str, job: str, **more: Any) -> None:
        try:
            message = await self._client.ask({"do": do, "job": job, **more})
            if do == "run":
                self._started_job = job
            elif do == "remind":
                self._tracker.reminders[job] = self._now() + more["after"]
        except (ActionRejected, AgentUnavailable) as error:
            message = str(error)
        self._message = (message, time.monotonic() + _MESSAGE_TIME)
        await self.draw()

    def action_run_now(self) -> None:
        """Run the job under the cursor."""
        self._ask("run", self.offers.job)

    @work(group="dialog", exclusive=True)
    async def action_postpone(self) -> None:
        """Ask for the time of a postponement, and postpone."""
        if offer := self._offer:
            until = await self.push_screen_wait(TimeDialog(offer, self._now(), remind=False))
            if until is not None:
                self._ask(
                    "postpone", offer.job, until=datetime.fromtimestamp(until, UTC).isoformat()
                )

    @work(group="dialog", exclusive=True)
    async def action_remind(self) -> None:
        """Ask for the time of a reminder, and set it."""
        if offer := self._offer:
            at = await self.push_screen_wait(TimeDialog(offer, self._now(), remind=True))
            if at is not None:
                self._ask("remind", offer.job, after=at - self._now())

    @work(group="dialog", exclusive=True)
    async def action_decline(self) -> None:
        """Ask for a reason, and decline."""
        if offer := self._offer:
            reason = await self.push_screen_wait(DeclineDialog(offer, self._now()))
            if reason is not None:
                self._ask("decline", offer.job, reason=reason)

    @work(group="dialog", exclusive=True)
    async def action_details(self) -> None:
        """Show the details of the job under the cursor."""
        now, job = self._now(), self._pane.job
        if self.tabs.active == "offers-tab" and (offer := self._offer):
            dialog = DetailsDialog(offer, now, self._tracker.remind_at(job))
            if await self.push_screen_wait(dialog) == "run_now":
                self._ask("run", offer.job)
        elif self._snapshot and (ended := self._snapshot.ended(job)):
            await self.push_screen_wait(EndedDialog(ended, now, self._client))

    @work(group="dialog", exclusive=True)
    async def action_stop(self) -> None:
        """Stop the job under the cursor after a confirmation."""
        job = self.running.job
        row = (
            next((row for row in self._snapshot.running if row.job == job), None)
            if self._snapshot
            else None
        )
        if row:
            question = QuestionDialog(
                row.name, "Stop it? Its changes so far are not undone.", "Stop"
            )
            if await self.push_screen_wait(question):
                self._ask("stop", job)

    def action_search(self) -> None:
        """Move the focus to the search field."""
        self.history.query_one(Input).focus()

    def action_tab(self, tab: str) -> None:
        """Show a tab, and focus its table."""
        self.tabs.active = tab
        self._pane.table.focus()

    def action_other_theme(self) -> None:
        """Switch between the light and the dark theme."""
        self._light = not self._light
        self._set_theme()

    def _set_theme(self) -> None:
        self.theme = (LIGHT if self._light else DARK).name

    @work(group="dialog", exclusive=True)
    async def action_help(self) -> None:
        """Show the keys."""
        await self.push_screen_wait(HelpDialog(_help()))

    async def action_quit(self) -> None:
        """Close the window; ask first if that stops running commands."""
        self._close_window()

    def action_help_quit(self) -> None:
        """Close the window on Ctrl-C, too."""
        self._close_window()

    @work(group="dialog", exclusive=True)
    async def _close_window(self) -> None:
        running = len(self._snapshot.running) if self._snapshot else 0
        if self._owner and running:
            text = "Running commands are stopped when you close this window."
            question = QuestionDialog("Close?", text, "Stop and close")
            if not await self.push_screen_wait(question):
                return
        self.exit()


def _help() -> list[tuple[str, str]]:
    return [
        ("r", "run the selected job now"),
        ("p", "postpone it; a mandatory job still runs at its deadline"),
        ("m", "set a reminder; nothing else changes"),
        ("x", "decline an optional job, with a reason"),
        ("d or Enter", "show the details of the job"),
        ("s", "stop a running job, where that is allowed"),
        ("1 2 3", "show the offers, the running jobs, the history"),
        ("/", "search in the history"),
        ("arrows, Tab", "select a job; move to the next part"),
        ("t", "switch between light and dark"),
        ("Escape", "close a dialog without an answer"),
        ("q", "close this window"),
        ("\u25cf", "mandatory: runs automatically at its deadline"),
        ("\u25cb", "optional: runs only if you start it"),
    ]
