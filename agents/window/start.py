"""Open the window: in a terminal or for browsers, in the agent's process or in another."""

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
from agents.window.client import AgentUnavailable, Client

_POLL = 1.0  # seconds


@dataclass(frozen=True)
class WindowOptions:
    """The options of a window.

    Attributes:
        directory: the folder of the interactive agent.
        light: whether to use the light theme.
        web: the address at which browsers get it; None for this terminal.
        arguments: the options with which another `pcm-agent window` finds the same agent.
    """

    directory: Path
    light: bool = False
    web: Address | None = None
    arguments: tuple[str, ...] = ()


async def open_window(options: WindowOptions) -> None:
    """Open a window on a running agent, until the user closes it.

    Raises:
        StateError: no agent runs there, or it is another user's.
    """
    await _check(options.directory)
    window = Window(Client(options.directory), light=options.light)
    watching = asyncio.create_task(_exit_with_terminal(window))
    try:
        await window.run_async()
    finally:
        watching.cancel()


async def serve_windows(options: WindowOptions) -> None:
    """Serve windows on a running agent, until a signal is received.

    Raises:
        StateError: no agent runs there, it is another user's, or the address cannot be used.
    """
    from agents.window.web import serving

    await _check(options.directory)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    if options.web:
        async with serving(options.web, options.arguments, light=options.light) as url:
            _print_url(url)
            await stopping.wait()


async def run_with_web(agent: Agent, options: WindowOptions) -> None:
    """Run an agent, and serve its window to browsers.

    Raises:
        StateError: the address cannot be used.
    """
    from agents.window.web import serving

    if options.web:
        async with serving(options.web, options.arguments, light=options.light) as url:
            _print_url(url)
            await agent.run()


async def run_with_window(agent: Agent, *, light: bool) -> None:
    """Run an agent and its window in this terminal, until one of them ends."""
    window = Window(Client(agent.directory), owner=True, light=light)
    running = asyncio.create_task(agent.run())
    running.add_done_callback(lambda _done: window.exit())
    watching = asyncio.create_task(_exit_with_terminal(window))
    try:
        await window.run_async()
    finally:
        watching.cancel()
        agent.stop()
        await running


async def _exit_with_terminal(window: Window) -> None:
    """Close a window when its terminal is closed; Textual itself would go on reading."""
    poll = select.poll()
    poll.register(sys.__stdin__ or 0, 0)  # a hang-up is reported without a mask
    while not poll.poll(0):  # noqa: ASYNC110 - asyncio has no event for a hang-up
        await asyncio.sleep(_POLL)
    window.exit()


async def _check(directory: Path) -> None:
    try:
        await Client(directory).check()
    except (AgentUnavailable, OSError) as error:
        raise StateError(f"{error}: {directory}") from error


def _print_url(url: str) -> None:
    print(f"the window is at {url}", flush=True)
