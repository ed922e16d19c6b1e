"""Show a job live on a terminal, in a few lines."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from broker.cli.terminal import printable
from broker.watch.background import in_background
from broker.watch.missing import describe_unreported
from broker.watch.tally import Failure, WatchTally
from schemas import State
from schemas.text import counted, listed
from schemas.times import duration_text

_INTERVAL = 0.25  # seconds
_MAX_FAILURES = 20  # lines above the live part
_MAX_NAMES = 5
_COLORS = {
    State.SUCCEEDED: "green",
    State.STARTED: "cyan",
    State.CANCELLED: "magenta",
    State.DECLINED: "magenta",
    State.NOT_APPLICABLE: "magenta",
}
_ORDER = ("green", "red", "magenta", "cyan", "yellow", "bright_black")


class View:
    """Shows a tally, and above it the first failure of each kind."""

    def __init__(self, tally: WatchTally, live: Live) -> None:
        self._tally = tally
        self._live = live
        self._printed = 0

    def print(self, failure: Failure) -> None:
        """Print the first failure of a kind, up to a limit of kinds."""
        self._printed += 1
        if self._printed <= _MAX_FAILURES:
            text = Text(printable(f"{failure.example:<16} {failure.text}"), style="red")
            self._live.console.print(text, no_wrap=True, overflow="ellipsis")


@asynccontextmanager
async def show_live(tally: WatchTally) -> AsyncIterator[View]:
    """Show a tally on the terminal; remove it at the end."""
    console = Console()
    # No refresh thread: the tally changes in the event loop's thread.
    live = Live(
        get_renderable=lambda: _render(tally, console),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    with live:
        async with in_background(_refresh(live)):
            yield View(tally, live)


async def _refresh(live: Live) -> None:
    while True:
        live.refresh()
        await asyncio.sleep(_INTERVAL)


def _render(tally: WatchTally, console: Console) -> Group:
    queued = len(tally.queued)
    total = len(tally.progress.workstations) + queued
    lines = [
        *([_bar(tally, queued, total, console)] if total else []),
        Text(str(tally)),
        *map(Text, _notes(tally, total)),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def _bar(tally: WatchTally, queued: int, total: int, console: Console) -> Text:
    label = f"{100 * tally.ended // total:3} % of {total}  "
    width = max(10, min(60, console.width - len(label)))
    parts = dict.fromkeys(_ORDER, 0)
    for state, count in tally.progress.counts.items():
        parts[_color(state)] += count
    parts["bright_black"] += queued
    bar, done, filled = Text(label), 0, 0
    char = "-" if console.options.ascii_only else "━"
    for color, count in parts.items():
        done += count
        end = width * done // total
        bar.append(char * (end - filled), style=color)
        filled = end
    return bar


def _color(state: State) -> str:
    return _COLORS.get(state, "red" if state.final else "yellow")


def _notes(tally: WatchTally, total: int) -> Iterator[str]:
    remaining = total - tally.ended
    if remaining and (rate := tally.rate):
        seconds = remaining / rate
        at = datetime.fromtimestamp(time.time() + seconds, UTC).astimezone()
        duration = duration_text(timedelta(seconds=int(seconds)))
        yield f"{rate:.1f} ends a second; done at {at:%H:%M:%S %Z}, in {duration}"
    if tally.progress.caught_up.is_set() and (text := describe_unreported(tally)):
        yield f"waits for {text}"
    if tally.started:
        yield f"runs on {listed(tally.started, _MAX_NAMES)}"
    if tally.failures:
        yield f"failed on {tally.failed}, in {counted(len(tally.failures), 'way')}"
