"""The window in a browser: who may see it, and that it works in a real one."""

import asyncio
import re
import signal
import subprocess

import aiohttp
import pytest

from agents.window.address import read
from agents.window.web import serving
from broker import Dispatcher
from schemas import State
from tests.agents.window.browser import page
from tests.programs import BIN
from tests.workstation import Workstation, final, follow

_LIMIT = 60.0


@pytest.mark.parametrize("text", ["", "8000", "host", "host:", ":80", "a:b", "::1:80", "h:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|up to 65535"):
        read(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("localhost:80", True), ("127.0.0.9:0", True), ("[::1]:80", True), ("0.0.0.0:80", False)],
)
def test_an_address_says_who_can_reach_it(text: str, *, loopback: bool) -> None:
    assert read(text).loopback is loopback
    assert str(read(text)) == text


async def _status(url: str, **headers: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as response:
        return response.status


async def test_on_loopback_other_names_and_other_pages_are_refused() -> None:
    async with serving(read("127.0.0.1:0"), (), light=False) as url:
        port = url.split(":")[2].rstrip("/")
        assert await _status(url) == 200
        assert await _status(f"{url}static/js/textual.js") == 200
        assert await _status(url, Host=f"evil.example:{port}") == 403
        assert await _status(f"{url}ws", Origin="http://evil.example") == 403
        assert await _status(url, Origin=url.rstrip("/")) == 200


async def test_elsewhere_the_token_opens_page_files_and_websocket() -> None:
    async with serving(read("0.0.0.0:0"), (), light=False) as told:
        port, token = re.fullmatch(r"http://[^:]+:(\d+)/\?token=(\S{32})", told).groups()  # type: ignore[union-attr]
        url = f"http://127.0.0.1:{port}/"
        for path in ("", "static/js/textual.js", "ws", "download/x", "nothing"):
            assert await _status(f"{url}{path}") == 403, path
            assert await _status(f"{url}{path}?token=wrong") == 403, path
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as client:
            async with client.get(f"{url}?token={token}") as page:
                assert page.status == 200
                assert "HttpOnly" in page.headers["Set-Cookie"]
                assert f"ws://127.0.0.1:{port}/ws" in await page.text()
                assert token not in await page.text()
            async with client.get(f"{url}static/js/textual.js") as script:
                assert script.status == 200


async def test_no_two_servers_have_the_same_token() -> None:
    async with (
        serving(read("0.0.0.0:0"), (), light=False) as one,
        serving(read("0.0.0.0:0"), (), light=False) as other,
    ):
        assert one.partition("token=")[2] != other.partition("token=")[2]


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
    kind: str, ws: Workstation, dispatcher: Dispatcher
) -> None:
    if kind == "window":
        ws.start("interactive")
    job = ws.job("sh", "-c", "echo hello from a page; exit 3", name="Greeting")
    process, url = await asyncio.to_thread(_served, ws, kind)
    try:
        async with page() as browser:
            await browser.open(url)
            await browser.until("Nothing to do.")
            await browser.press("3")  # no click was needed for that
            await browser.until("Nothing was run here yet.")
            await browser.press("1")
            await browser.until("Nothing to do.")
            await dispatcher.dispatch(job)
            await browser.until("Greeting")
            await browser.click_on("Run now")
            await browser.until("hello from a page")
            await browser.until("failed: exit code 3")
        assert final(await follow(dispatcher, job)).state is State.FAILED
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(_LIMIT) == 0
        if process.stdout:
            process.stdout.close()


async def test_a_port_that_is_taken_is_told_in_a_line(ws: Workstation) -> None:
    async with serving(read("127.0.0.1:0"), (), light=False) as url:
        address = url.removeprefix("http://").rstrip("/")
        told = await asyncio.to_thread(ws.run, "pcm-agent", "interactive", "--web", address)
    assert told.returncode == 1
    assert told.stderr.startswith(f"pcm-agent: --web: {address}: ")
    assert len(told.stderr.splitlines()) == 1
