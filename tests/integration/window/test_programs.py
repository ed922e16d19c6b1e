"""The programs that open a window."""

import asyncio
import os
import signal

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.programs import BIN
from tests.support.terminal import OnTerminal
from tests.support.waiting import LIMIT, until
from tests.support.workstation import Workstation, final, follow


class _Seen(OnTerminal):
    """A window on a terminal; what Textual writes is searched as it comes."""

    def until_written(self, text: str) -> None:
        """Wait until a text has been written."""
        self.until(lambda _shown: any(text in line for line in self.screen.lines))


def _on_terminal(ws: Workstation, *words: str) -> _Seen:
    return _Seen([BIN / "pcm-agent", *words], ws.environment)


def test_the_agent_ends_with_the_window_in_its_terminal(ws: Workstation) -> None:
    window = _on_terminal(ws, "interactive")
    window.until_written("No offers.")
    log = ws.state_dir / "interactive-ada" / "agent.log"
    window.type("q")
    assert window.end() == 0
    events = log.read_text()
    assert "agent.started" in events
    assert "agent.stopped" in events


async def test_closing_the_window_asks_before_it_stops_what_runs(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    job = ws.job("sleep", "60", name="Long", mandatory_at=None)
    window = await asyncio.to_thread(_on_terminal, ws, "interactive")
    log = ws.state_dir / "interactive-ada" / "agent.log"
    await until(lambda: log.is_file() and "broker.connected" in log.read_text())
    await dispatcher.dispatch(job)
    await asyncio.to_thread(window.until_written, "Long")
    window.type("r")
    await asyncio.to_thread(window.until_written, "running, limit")
    window.type("q")
    await asyncio.to_thread(window.until_written, "Running commands are stopped")
    window.type("\r")
    assert await asyncio.to_thread(window.end) == 0
    assert final(await follow(dispatcher, job)).state is State.INTERRUPTED


def test_a_window_on_a_running_agent_leaves_it_running(ws: Workstation) -> None:
    agent = ws.start("interactive")
    window = _on_terminal(ws, "window")
    window.until_written("No offers.")
    window.type("q")
    assert window.end() == 0
    assert agent.process.poll() is None


def test_a_signal_ends_agent_and_window(ws: Workstation) -> None:
    window = _on_terminal(ws, "interactive")
    window.until_written("No offers.")
    window.process.send_signal(signal.SIGTERM)
    assert window.end() == 0


def test_a_terminal_that_is_gone_takes_agent_and_window_along(ws: Workstation) -> None:
    window = _on_terminal(ws, "interactive")
    window.until_written("No offers.")
    window.hang_up()
    assert window.process.wait(LIMIT) == 0


def test_without_a_window_a_terminal_shows_the_log(ws: Workstation) -> None:
    agent = _on_terminal(ws, "interactive", "--no-window")
    agent.until_written("agent.started")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == 0


def test_without_an_agent_a_window_says_so_in_a_line(ws: Workstation) -> None:
    window = _on_terminal(ws, "window")
    assert window.end() == 1
    assert "no interactive agent of this user is running here" in "\n".join(window.screen.shown)
    assert len(window.screen.shown) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_agent_is_refused(ws: Workstation) -> None:
    ws.start("interactive")
    os.chown(ws.state_dir / "interactive-ada", 65534, 65534)
    window = _on_terminal(ws, "window")
    assert window.end() == 1
    assert "this interactive agent is another user's" in "\n".join(window.screen.shown)


def test_a_window_needs_a_terminal(ws: Workstation) -> None:
    done = ws.run("pcm-agent", "window")
    assert done.returncode == 2
    assert done.stderr == (
        "pcm-agent: window: needs a terminal; without one, serve it with --web HOST:PORT\n"
    )


@pytest.mark.parametrize("command", ["window", "interactive"])
def test_a_wrong_address_is_reported_in_a_line(command: str, ws: Workstation) -> None:
    done = ws.run("pcm-agent", command, "--web", "nowhere")
    assert done.returncode == 2
    assert done.stderr == (
        f"pcm-agent {command}: --web: 'nowhere' must be HOST:PORT, such as localhost:8000\n"
    )
