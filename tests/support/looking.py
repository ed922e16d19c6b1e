"""How tests see and use a window."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from agents.window.app import Window
from agents.window.client import Client
from tests.support.standin import NOW
from tests.support.waiting import LIMIT


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Looking:
    """A window that is open, and who sits before it."""

    def __init__(self, app: Window, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def text(self) -> str:
        """What is on the screen."""
        strips = self.app.screen._compositor.render_strips()  # noqa: SLF001 - there is no other way
        return "\n".join(strip.text.rstrip() for strip in strips) + "\n"

    async def until(self, seen: str | Callable[[], Any]) -> str:
        """Wait until the screen shows a text, or something is so; return the screen."""
        deadline = time.monotonic() + LIMIT
        while not (self._shows(seen) if isinstance(seen, str) else seen()):
            assert time.monotonic() < deadline, f"no {seen}:\n{self.text}"
            await self.pilot.pause(0.02)
        await self.pilot.pause()
        return self.text

    def _shows(self, text: str) -> bool:
        """Whether a text is there, wherever its line was broken."""
        return text in self.text or text in " ".join(self.text.split())

    async def steady(self) -> str:
        """Wait until the screen does not change any more; return it."""
        same, shown = 0, ""
        while same < 10:
            await self.pilot.pause(0.03)
            same = same + 1 if self.text == shown else 0
            shown = self.text
        return shown

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def click(self, selector: str) -> None:
        """Click on something."""
        await self.pilot.click(selector)
        await self.pilot.pause()


@asynccontextmanager
async def looking(
    directory: Path,
    size: tuple[int, int] = (80, 24),
    clock: Callable[[], float] = time.time,
    **options: Any,
) -> AsyncIterator[Looking]:
    """Open a window on the agent of a folder."""
    app = Window(Client(directory), now=clock, tick=0.05, **options)
    async with app.run_test(size=size) as pilot:
        yield Looking(app, pilot)
