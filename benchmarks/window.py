"""Measure the CPU use of a window: idle, with a countdown, and with much live output.

First the programs on a terminal, with a broker; then the window alone.

python -m benchmarks.window
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents.window.app import Window
from agents.window.client import Client
from agents.window.output import OutputView
from tests.support.programs import BIN
from tests.support.rabbitmq import Node
from tests.support.standin import StandIn, offer, running
from tests.support.terminal import OnTerminal
from tests.support.workstation import Workstation

_WATCHED = 20.0
_LINES = 10_000
_FOR = 5


async def _share(name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Print this process's share of a core during some work."""
    cpu, start = time.process_time(), time.monotonic()
    await work()
    share = (time.process_time() - cpu) / (time.monotonic() - start)
    print(f"{name:<44} {share:7.2%} of a core ({seconds:.0f} s)")


async def _idle() -> None:
    await asyncio.sleep(_WATCHED)


async def _pour(view: OutputView) -> None:
    """Write `_LINES` lines a second, and measure the delay of the event loop."""
    worst = 0.0
    for second in range(_FOR * 20):
        lines = "".join(f"line {second} {n} of the output\n" for n in range(_LINES // 20))
        view.feed("stdout", json.loads(json.dumps(lines)))
        due = time.monotonic() + 0.05
        await asyncio.sleep(0.05)
        worst = max(worst, time.monotonic() - due)
    print(f"{'the longest that a key would wait':<44} {worst * 1000:7.0f} ms")


def _programs() -> None:
    """Print the share of a core of an idle agent and its idle window."""
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        ws = Workstation("bench", node.url, Path(folder))
        agent = ws.start("interactive")
        window = OnTerminal([BIN / "pcm-agent", "window"], ws.environment)
        try:
            pids = {"pcm-agent window": window.process.pid, "its agent": agent.process.pid}
            _look_on(window, 3.0)  # skip their start
            begun = {name: _worked(pid) for name, pid in pids.items()}
            start = time.monotonic()
            _look_on(window, _WATCHED)
            for name, pid in pids.items():
                share = (_worked(pid) - begun[name]) / (time.monotonic() - start)
                print(f"{f'{name}, nothing offered':<44} {share:7.2%} of a core ({_WATCHED:.0f} s)")
        finally:
            OnTerminal.end_all()
            ws.stop()


def _look_on(window: OnTerminal, seconds: float) -> None:
    """Read the window's output, as a terminal does."""
    end = time.monotonic() + seconds
    window.until(lambda _shown: time.monotonic() > end)


def _worked(pid: int) -> float:
    """Return the CPU seconds of a process."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def _main() -> None:
    agent = StandIn()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        async with agent.serving(directory):
            app = Window(Client(directory))
            async with app.run_test(size=(140, 40)) as pilot:
                await pilot.pause(1.0)
                await _share("nothing offered", _WATCHED, _idle)
                agent.show(offers=[offer("a", "Update", deadline=time.time() + 1800)])
                await pilot.pause(1.0)
                await _share("a countdown", _WATCHED, _idle)
                agent.show(running=[running("b", "Writer", started_at=time.time())])
                await pilot.press("2")
                await pilot.pause(1.0)
                view = app.query_one(OutputView)
                await _share(f"{_LINES} lines a second", _FOR, lambda: _pour(view))


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm-256color")
    _programs()
    asyncio.run(_main())
