"""An agent's side of the window's protocol, with what a test puts into it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

NOW = 1_795_000_000.0  # 2026-11-18 11:06:40 UTC
Fields = dict[str, Any]


def offer(job: str, name: str, **fields: Any) -> Fields:
    """Return an offer; optional, unless a deadline is given."""
    deadline = fields.get("deadline")
    return {
        "job": job,
        "name": name,
        "comment": "",
        "sender": "eve@admin",
        "command": f"/opt/{job}",
        "requirement": "optional" if deadline is None else "mandatory",
        "state": "offered",
        "shown_at": NOW - 600,
        "mandatory_at": deadline,
        "deadline": None,
        "countdown": False,
        "expires_at": None,
        "timeout": 3600.0,
        "until": None,
        "starts_at": None,
        "postponements_left": None,
        "min_interval": 0.0,
        "may_decline": deadline is None,
        **fields,
    }


def running(job: str, name: str, **fields: Any) -> Fields:
    """Return a job that runs."""
    return {
        "job": job,
        "name": name,
        "comment": "",
        "sender": "eve@admin",
        "command": f"/opt/{job}",
        "started_at": NOW - 65,
        "timeout": 3600.0,
        "may_stop": True,
        **fields,
    }


def ended(job: str, name: str, **fields: Any) -> Fields:
    """Return a job that ended, by default with success."""
    return {
        "job": job,
        "name": name,
        "comment": "",
        "sender": "eve@admin",
        "command": f"/opt/{job}",
        "state": "succeeded",
        "at": NOW - 3600,
        "duration": 42.0,
        "exit_code": 0,
        "signal": None,
        "restart_required": False,
        "reason": "",
        **fields,
    }


def snapshot(**fields: Any) -> Fields:
    """Return a snapshot in which all is quiet."""
    return {
        "workstation": "ws-042",
        "user": "ada",
        "now": NOW,
        "broker": "connected",
        "since": NOW - 3600,
        "service": "up",
        "paused": None,
        "offers": [],
        "running": [],
        "history": [],
        **fields,
    }


class StandIn:
    """Answers a window over a real socket, and keeps what it was asked."""

    def __init__(self) -> None:
        self.snapshot = snapshot()
        self.output: dict[str, list[Fields]] = {}
        self.asked: list[Fields] = []
        self.reply: Fields = {"message": "well"}
        self._changed = asyncio.Event()
        self._speaking: set[asyncio.Task[Any]] = set()

    def show(self, **fields: Any) -> None:
        """Change what the agent sends to the window."""
        self.snapshot = {**self.snapshot, **fields}
        self._changed.set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def serving(self, directory: Path) -> AsyncIterator["StandIn"]:
        """Answer in a folder."""
        path = directory / "control.sock"
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._speak, path)
        try:
            yield self
        finally:
            server.close()
            for task in self._speaking:
                task.cancel()
            await asyncio.gather(*self._speaking, return_exceptions=True)
            path.unlink(missing_ok=True)

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._speaking.add(task)
            task.add_done_callback(self._speaking.discard)
        try:
            request = json.loads(await reader.readline())
            match request["do"]:
                case "watch":
                    await self._watch(writer)
                case "output":
                    await _send(writer, *self.output.get(request["job"], []))
                case _:
                    self.asked.append(request)
                    await _send(writer, self.reply)
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # the window has gone, or the test is over
        finally:
            writer.close()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            changed = self._changed
            await _send(writer, self.snapshot)
            await changed.wait()


async def _send(writer: asyncio.StreamWriter, *lines: Fields) -> None:
    writer.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    await writer.drain()
