"""A page in a headless Chromium, driven by its own protocol, and what its terminal shows."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest

from tests.support.waiting import LIMIT

_TOKEN = re.compile(
    r"\x1b\[([0-9;?$]*)([A-Za-z])|\x1b[P\]][^\x07\x1b]*(?:\x07|\x1b\\)?|(.)", re.DOTALL
)
_BINARY = 2
_AGAIN = 5.0  # seconds


class Grid:
    """A terminal screen for Textual's output: cursor positions and text."""

    def __init__(self) -> None:
        self.columns, self.rows = 80, 24
        self._cells: dict[tuple[int, int], str] = {}
        self._row = self._column = 0

    def resize(self, columns: int, rows: int) -> None:
        """Resize the window; the page is drawn again."""
        if (columns, rows) != (self.columns, self.rows):
            self.columns, self.rows = columns, rows
            self._cells.clear()

    def feed(self, text: str) -> None:
        """Take in what is written."""
        for numbers, letter, char in _TOKEN.findall(text):
            if letter == "H":
                row, _, column = numbers.partition(";")
                self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
            elif char == "\n":
                self._row, self._column = self._row + 1, 0
            elif char and char.isprintable():
                self._cells[self._row, self._column] = char
                self._column += 1

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        cells = self._cells
        return [
            "".join(cells.get((row, column), " ") for column in range(self.columns))
            for row in range(self.rows)
        ]


class Browser:
    """A page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.grid = Grid()

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self._do("Network.enable")
        await self._do("Page.navigate", url=url)

    async def until(self, text: str, limit: float = LIMIT) -> str:
        """Wait until its terminal shows a text; return all that it shows."""
        deadline = time.monotonic() + limit
        while text not in (shown := "\n".join(self.grid.lines)):
            assert time.monotonic() < deadline, shown
            await self._do("Runtime.evaluate", expression="1")
        return shown

    async def click_on(self, text: str) -> None:
        """Click on a text in the terminal."""
        row, line = next((n, line) for n, line in enumerate(self.grid.lines) if text in line)
        column = line.index(text) + len(text) // 2
        script = "JSON.stringify(document.querySelector('.xterm-screen').getBoundingClientRect())"
        reply = await self._do("Runtime.evaluate", expression=script)
        box = json.loads(reply["result"]["value"])
        x = box["x"] + (column + 0.5) * box["width"] / self.grid.columns
        y = box["y"] + (row + 0.5) * box["height"] / self.grid.rows
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self._do(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def press(self, key: str, shown: str) -> None:
        """Press a key that writes something until its text is shown.

        On a busy machine the first key after the page was opened can be lost.
        """
        await self._until_true("document.activeElement.tagName == 'TEXTAREA'")
        deadline = time.monotonic() + LIMIT
        while True:
            await self._press(key)
            try:
                await self.until(shown, _AGAIN)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    async def _press(self, key: str) -> None:
        await self._do("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        await self._do("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def _until_true(self, expression: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not (await self._do("Runtime.evaluate", expression=expression))["result"]["value"]:
            assert time.monotonic() < deadline, expression

    async def picture(self) -> bytes:
        """Return what it looks like, as PNG."""
        return base64.b64decode((await self._do("Page.captureScreenshot"))["data"])

    async def _do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            reply = await self._socket.receive_json(timeout=LIMIT)
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result
            self._take(reply)

    def _take(self, reply: dict[str, Any]) -> None:
        frame = reply.get("params", {}).get("response", {})
        if reply.get("method") == "Network.webSocketFrameReceived" and frame["opcode"] == _BINARY:
            self.grid.feed(base64.b64decode(frame["payloadData"]).decode())
        elif reply.get("method") == "Network.webSocketFrameSent" and frame["opcode"] != _BINARY:
            kind, *data = json.loads(frame["payloadData"])
            if kind == "resize":
                self.grid.resize(data[0]["width"], data[0]["height"])


@contextmanager
def _chromium() -> Iterator[int]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium: setup.sh chromium installs it")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--remote-debugging-port=0", "--remote-allow-origins=*"),
                *(f"--user-data-dir={folder}", "--window-size=1000,640", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield _port(process)
            finally:
                process.terminate()


def _port(process: "subprocess.Popen[str]") -> int:
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"ws://[^:]+:(\d+)/", line):
            return int(found[1])
    raise AssertionError("chromium did not start")


@asynccontextmanager
async def page() -> AsyncIterator[Browser]:
    """Open a page in a Chromium of its own; where there is none, the test is skipped."""
    with _chromium() as port:
        async with aiohttp.ClientSession() as client:
            async with client.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = json.loads(await response.text())
            target = next(found for found in pages if found["type"] == "page")
            async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Browser(socket)
