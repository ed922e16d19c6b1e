"""The live view of a job on a terminal: a few lines, however many workstations there are."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from broker.cli.terminal import printable
from broker.watch.tally import Failure, WatchTally
from schemas import State
from schemas.text import counted, listed
from schemas.times import duration_text

_INTERVAL = 0.25  # seconds
_MOST_FAILURES = 20  # lines above the live part
_NAMES = 5
_COLORS = {
    State.SUCCEEDED: "green",
    State.STARTED: "cyan",
    State.CANCELLED: "magenta",
    State.DECLINED: "magenta",
    State.NOT_APPLICABLE: "magenta",
}
_ORDER = ("green", "red", "magenta", "cyan", "yellow", "bright_black")


class View:
    """Shows a tally: failures as they come, and below them how it stands."""

    def __init__(self, tally: WatchTally, live: Live) -> None:
        self._tally = tally
        self._live = live
        self._told = 0

    def tell(self, failure: Failure) -> None:
        """Show the first failure of a kind; of very many kinds, the first ones."""
        self._told += 1
        if self._told <= _MOST_FAILURES:
            text = Text(printable(f"{failure.example:<16} {failure.text}"), style="red")
            self._live.console.print(text, no_wrap=True, overflow="ellipsis")


@asynccontextmanager
async def shown(tally: WatchTally) -> AsyncIterator[View]:
    """Show a tally on the terminal until the end, and remove it then."""
    console = Console()
    # Not by its own thread: what it shows changes in ours.
    live = Live(
        get_renderable=lambda: _render(tally, console),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    with live:
        refreshing = asyncio.create_task(_refresh(live))
        try:
            yield View(tally, live)
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing


async def _refresh(live: Live) -> None:
    while True:
        live.refresh()
        await asyncio.sleep(_INTERVAL)


def _render(tally: WatchTally, console: Console) -> Group:
    unheard = len(tally.unheard)
    total = len(tally.progress.workstations) + unheard
    lines = [
        *([_bar(tally, unheard, total, console)] if total else []),
        Text(str(tally)),
        *map(Text, _notes(tally, total)),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def _bar(tally: WatchTally, unheard: int, total: int, console: Console) -> Text:
    head = f"{100 * tally.ended // total:3} % of {total}  "
    width = max(10, min(60, console.width - len(head)))
    parts = dict.fromkeys(_ORDER, 0)
    for state, count in tally.progress.counts.items():
        parts[_color(state)] += count
    parts["bright_black"] += unheard
    bar, done, filled = Text(head), 0, 0
    mark = "-" if console.options.ascii_only else "━"
    for color, count in parts.items():
        done += count
        end = width * done // total
        bar.append(mark * (end - filled), style=color)
        filled = end
    return bar


def _color(state: State) -> str:
    return _COLORS.get(state, "red" if state.final else "yellow")


def _notes(tally: WatchTally, total: int) -> Iterator[str]:
    left = total - tally.ended
    if left and (rate := tally.rate):
        seconds = left / rate
        at = datetime.fromtimestamp(time.time() + seconds, UTC).astimezone()
        about = duration_text(timedelta(seconds=int(seconds)))
        yield f"{rate:.1f} end in a second, at this rate until {at:%H:%M:%S %Z}, in {about}"
    if tally.running:
        yield f"runs on {listed(tally.running, _NAMES)}"
    if tally.failures:
        yield f"failed on {tally.failed}, in {counted(len(tally.failures), 'way')}"
