"""How the window is opened: in a terminal or for browsers, beside its agent or in its process."""

import asyncio
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from agents.agent import Agent
from agents.store.state_folder import StateError
from agents.window.address import Address
from agents.window.app import Window
from agents.window.client import Client, Gone

_LOOK = 1.0  # seconds


@dataclass(frozen=True)
class Face:
    """How a window is shown.

    Attributes:
        directory: the folder of the interactive agent that it shows.
        light: whether it is bright.
        web: where it is served to browsers; in this terminal, if nowhere.
        options: what leads another `pcm-agent window` to the same agent.
    """

    directory: Path
    light: bool = False
    web: Address | None = None
    options: tuple[str, ...] = ()


async def open_window(face: Face) -> None:
    """Open a window on a running agent, until the user closes it.

    Raises:
        StateError: no agent runs there, or it is another user's.
    """
    await _check(face.directory)
    window = Window(Client(face.directory), light=face.light)
    leaving = asyncio.create_task(_leave_with_terminal(window))
    try:
        await window.run_async()
    finally:
        leaving.cancel()


async def serve(face: Face) -> None:
    """Serve windows on a running agent, until a signal comes.

    Raises:
        StateError: no agent runs there, it is another user's, or nothing can be served there.
    """
    from agents.window.web import serving

    await _check(face.directory)
    enough = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, enough.set)
    if face.web:
        async with serving(face.web, face.options, light=face.light) as url:
            _tell(url)
            await enough.wait()


async def in_browsers(agent: Agent, face: Face) -> None:
    """Run an agent, and serve its window.

    Raises:
        StateError: nothing can be served there.
    """
    from agents.window.web import serving

    if face.web:
        async with serving(face.web, face.options, light=face.light) as url:
            _tell(url)
            await agent.run()


async def with_agent(agent: Agent, *, light: bool) -> None:
    """Run an agent and its window in this terminal, until one of them ends."""
    window = Window(Client(agent.directory), owner=True, light=light)
    working = asyncio.create_task(agent.run())
    working.add_done_callback(lambda _done: window.exit())
    leaving = asyncio.create_task(_leave_with_terminal(window))
    try:
        await window.run_async()
    finally:
        leaving.cancel()
        agent.stop()
        await working


async def _leave_with_terminal(window: Window) -> None:
    """Close a window whose terminal is gone: without an end of its own, it would only read that."""
    poll = select.poll()
    poll.register(sys.__stdin__ or 0, 0)  # that it is gone is told unasked
    while not poll.poll(0):  # noqa: ASYNC110 - the kernel wakes nobody for it
        await asyncio.sleep(_LOOK)
    window.exit()


async def _check(directory: Path) -> None:
    try:
        await Client(directory).check()
    except (Gone, OSError) as error:
        raise StateError(f"{error}: {directory}") from error


def _tell(url: str) -> None:
    print(f"the window is at {url}", flush=True)
