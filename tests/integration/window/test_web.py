"""The window in a browser: who may see it, and that it works in a real one."""

import asyncio
import signal
import subprocess

import pytest

from agents.window.address import parse
from agents.window.web import serving
from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.browser import page
from tests.support.programs import BIN
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, checked_in, final, follow


def _served(ws: Workstation, *words: str) -> tuple["subprocess.Popen[str]", str]:
    """Start a program of ours that serves the window; return it and its URL."""
    process = subprocess.Popen(
        [BIN / "pcm-agent", *words, "--web", "127.0.0.1:0"],
        env=ws.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    return process, process.stdout.readline().rpartition(" ")[2].strip()


@pytest.mark.parametrize("kind", ["interactive", "window"])
async def test_in_a_browser_a_user_sees_an_offer_runs_it_and_sees_what_comes_of_it(
    kind: str, ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    if kind == "window":
        ws.start("interactive")
    job = ws.job("sh", "-c", "echo hello from a page; exit 3", name="Greeting")
    process, url = await asyncio.to_thread(_served, ws, kind)
    try:
        async with page() as browser:
            await browser.open(url)
            await browser.until("No offers.")
            await browser.press("3", "No job has ended yet.")  # no click was needed for that
            await browser.press("1", "No offers.")
            await checked_in(settings, ws)  # its queue is bound
            await dispatcher.dispatch(job)
            await browser.until("Greeting")
            await browser.click_on("Run now")
            await browser.until("hello from a page")
            await browser.until("failed: exit code 3")
        assert final(await follow(dispatcher, job)).state is State.FAILED
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        if process.stdout:
            process.stdout.close()


async def test_a_port_that_is_taken_is_reported_in_a_line(ws: Workstation) -> None:
    async with serving(parse("127.0.0.1:0"), (), light=False) as url:
        address = url.removeprefix("http://").rstrip("/")
        told = await asyncio.to_thread(ws.run, "pcm-agent", "interactive", "--web", address)
    assert told.returncode == 1
    assert told.stderr.startswith(f"pcm-agent: --web: {address}: ")
    assert len(told.stderr.splitlines()) == 1
