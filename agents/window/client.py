"""The window's client of the agent's control socket."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from agents.window.snapshot import Snapshot, parse_snapshot
from agents.window.texts import clean
from broker.amqp.timeouts import timeout
from schemas.errors import PcmError

_SOCKET = "control.sock"
_CHUNK = 256 * 1024
_REPLY_LIMIT = 10.0
_FIRST_DELAY, _MAX_DELAY = 0.1, 2.0


class AgentUnavailable(PcmError):
    """The agent does not answer; the text says why."""


class ActionRejected(PcmError):
    """The agent rejected the user's action; the text says why."""


class Client:
    """A client of the interactive agent of a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"<Client {self._directory}>"

    async def check(self) -> None:
        """Check that an agent of this user answers.

        Raises:
            AgentUnavailable: no agent runs, or it is another user's.
        """
        async with self._send({"do": "watch"}) as reader:
            if not await reader.read(1):
                raise AgentUnavailable("the interactive agent of this user does not answer")

    async def ask(self, request: dict[str, Any]) -> str:
        """Send a request; return the message of the reply.

        Raises:
            ActionRejected: the agent rejects the request.
            AgentUnavailable: the agent does not answer.
        """
        try:
            async with timeout(_REPLY_LIMIT), self._send(request) as reader:
                reply = json.loads(await reader.read())
        except (OSError, TimeoutError, ValueError) as error:
            raise AgentUnavailable("the agent does not answer") from error
        if "error" in reply:
            raise ActionRejected(clean(reply["error"]))
        return clean(reply["message"])

    async def watch(self) -> AsyncIterator[Snapshot | None]:
        """Yield each snapshot, and None when the connection is lost; reconnect forever."""
        delay = _FIRST_DELAY
        while True:
            with suppress(AgentUnavailable, OSError, ValueError, KeyError):
                async for lines in self._stream({"do": "watch"}):
                    delay = _FIRST_DELAY
                    yield parse_snapshot(lines[-1])  # the newest of those received together
            yield None
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_DELAY)

    async def output(self, job: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the output of a job's command and its end, in batches of lines."""
        with suppress(AgentUnavailable, OSError, ValueError):
            async for lines in self._stream({"do": "output", "job": job}):
                yield lines

    async def _stream(self, request: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the lines of a reply, in batches as received."""
        async with self._send(request) as reader:
            partial: list[bytes] = []
            while chunk := await reader.read(_CHUNK):
                *complete, last = chunk.split(b"\n")
                if complete:
                    complete[0] = b"".join([*partial, complete[0]])
                    partial = []
                    yield [json.loads(line) for line in complete]
                    await asyncio.sleep(0)  # let the window draw, however fast lines are received
                partial.append(last)

    @asynccontextmanager
    async def _send(self, request: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
        folder = self._open()
        try:
            # A socket's path has 108 bytes at most; the folder's can be longer.
            reader, writer = await asyncio.open_unix_connection(
                f"/proc/self/fd/{folder}/{_SOCKET}", limit=_CHUNK
            )
        except OSError as error:
            raise AgentUnavailable("no interactive agent of this user is running here") from error
        finally:
            os.close(folder)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            yield reader
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _open(self) -> int:
        try:
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise AgentUnavailable("this interactive agent is another user's") from error
        except OSError as error:
            raise AgentUnavailable("no interactive agent of this user is running here") from error
        if os.fstat(folder).st_uid != os.geteuid():
            os.close(folder)
            raise AgentUnavailable("this interactive agent is another user's")
        return folder
