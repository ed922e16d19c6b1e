"""The window with a real agent and broker behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.window.dialogs import OfferDialog
from broker import Dispatcher
from schemas import Job, State
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.looking import Looking, looking
from tests.support.rabbitmq import Node
from tests.support.workstation import Workstation, final, follow


@asynccontextmanager
async def _window(ws: Workstation, **settings: str) -> AsyncIterator[Looking]:
    agent = await asyncio.to_thread(lambda: Clock(ws).start("interactive", **settings))
    async with looking(ws.state_dir / "interactive-ada", (100, 30)) as window:
        await window.until(f"ada on {ws.name}")
        try:
            yield window
        finally:
            agent.process.terminate()


def _in(**after: float) -> datetime:
    return datetime.now(UTC) + timedelta(**after)


async def _reported(dispatcher: Dispatcher, job: Job, state: State) -> Any:
    async for report in dispatcher.follow(job.id):
        if report.state is state:
            return report
    raise AssertionError(f"no {state}")


async def test_an_offer_appears_and_runs_by_a_key(ws: Workstation, dispatcher: Dispatcher) -> None:
    job = ws.job("sh", "-c", "echo hello; echo careful >&2; exit 2", name="Greeting", comment="Hi.")
    async with _window(ws) as window:
        await window.until("No offers.")
        await dispatcher.dispatch(job)
        shown = await window.until("Greeting")
        assert "○ optional" in shown
        assert "Hi." in shown
        assert job.sender in shown
        await window.press("r")
        shown = await window.until("~ ✗ failed: exit code 2")
        assert "  hello" in shown
        assert "! careful" in shown
        assert final(await follow(dispatcher, job)).state is State.FAILED
        await window.press("3")
        assert "Greeting" in await window.until("✗ failed: exit code 2")


async def test_an_offer_is_run_and_stopped_by_mouse(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    job = ws.job("sh", "-c", "echo begun; sleep 60", name="Long", user_may_stop=True)
    async with _window(ws) as window:
        await dispatcher.dispatch(job)
        await window.until("Long")
        await window.click("#do-run_now")
        await window.until("  begun")
        await window.click("#do-stop")
        await window.until("Stop it?")
        await window.click("#yes")
        await window.until("~ \N{EN DASH} stopped")
    assert final(await follow(dispatcher, job)).state is State.CANCELLED


async def test_a_postponement_is_a_report(ws: Workstation, dispatcher: Dispatcher) -> None:
    job = ws.job("true", name="Update", mandatory_at=_in(hours=2), max_postponements=1)
    async with _window(ws) as window:
        await dispatcher.dispatch(job)
        await window.until("It can be postponed once more.")
        await window.press("p")
        await window.until("30 minutes, until")
        await window.press("tab", *"40m", "enter")
        shown = await window.until("● postponed")
        await window.until("It cannot be postponed again.")
        assert "1 h 5" in shown
        report = await _reported(dispatcher, job, State.POSTPONED)
        assert timedelta(minutes=39) < report.until - report.at <= timedelta(minutes=40)


async def test_the_reason_of_a_decline_reaches_the_administrator(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    job = ws.job("true", name="Survey")
    async with _window(ws) as window:
        await dispatcher.dispatch(job)
        await window.until("Survey")
        await window.press("x")
        await window.until("Why do you decline it?")
        await window.press(*"no time", "enter")
        await window.until("○ declined")
        assert (await _reported(dispatcher, job, State.DECLINED)).reason == "no time"


async def test_a_mandatory_job_runs_while_a_dialog_is_open(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    job = ws.job("sleep", "600", name="Update", mandatory_at=_in())
    async with _window(ws, countdown="55s", missing_after=LOOK_EVERY) as window:  # it rings
        await dispatcher.dispatch(job)
        await window.until("Update")
        await window.press("p")
        await window.until("as long as possible")
        Clock(ws, 60)
        await window.until("The job is running now.")
        await window.until(lambda: not isinstance(window.app.screen, OfferDialog))
        assert "Running (1)" in window.text
        assert window.app.rings == 1


async def test_a_background_job_is_nowhere_in_the_window(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service")
    hidden = ws.job("true", name="Hidden", background=True)
    async with _window(ws) as window:
        await dispatcher.dispatch(hidden)
        assert final(await follow(dispatcher, hidden)).state is State.SUCCEEDED
        await dispatcher.dispatch(ws.job("true", name="Seen"))
        await window.until("Seen")
        for key in ("1", "2", "3"):
            await window.press(key)
            assert "Hidden" not in window.text
        assert "Offers (1)" in window.text


async def test_a_second_window_shows_the_same(ws: Workstation, dispatcher: Dispatcher) -> None:
    async with _window(ws) as window, looking(ws.state_dir / "interactive-ada") as other:
        await dispatcher.dispatch(ws.job("true", name="Greeting"))
        await window.until("Greeting")
        await other.until("Greeting")
        await other.press("r")
        await other.until("~ ✓ finished")
        await window.until("No offers.")


async def test_a_stopped_broker_is_said_quietly(own_node: Node, ws: Workstation) -> None:
    ws.environment["PCM_AMQP_URL"] = own_node.url
    async with _window(ws) as window:
        await window.until("No offers.")
        await asyncio.to_thread(own_node.shut_down)
        await window.until("No connection to the server since")
        assert len(window.app.screen_stack) == 1
        await asyncio.to_thread(own_node.start)
        await window.until(lambda: "No connection" not in window.text)


async def test_the_window_comes_back_to_an_agent_that_was_started_again(ws: Workstation) -> None:
    async with _window(ws) as window:
        await asyncio.to_thread(ws.agents[-1].end)
        await window.until("The agent is not running.")
        await asyncio.to_thread(ws.start, "interactive")
        await window.until(lambda: "agent is not running" not in window.text)
