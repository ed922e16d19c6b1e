"""How the window speaks to the agent: over the socket in the agent's own folder."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from agents.window.snapshot import Snapshot, read
from agents.window.texts import clean
from broker.amqp.timeouts import timeout
from schemas.errors import PcmError

_SOCKET = "control.sock"
_CHUNK = 256 * 1024
_PATIENCE = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0


class Gone(PcmError):
    """No agent answers here; the text says why."""


class RequestDeclined(PcmError):
    """The agent does not do what was asked; the text says why."""


class Client:
    """Speaks to the interactive agent of a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"<Client {self._directory}>"

    async def check(self) -> None:
        """Make sure that an agent of this user is there.

        Raises:
            Gone: none runs, or it is another user's.
        """
        async with self._speak({"do": "watch"}) as reader:
            if not await reader.read(1):
                raise Gone("the interactive agent of this user does not answer")

    async def ask(self, request: dict[str, Any]) -> str:
        """Ask for something; return what the agent says.

        Raises:
            RequestDeclined: it does not do it.
            Gone: it is not there.
        """
        try:
            async with timeout(_PATIENCE), self._speak(request) as reader:
                reply = json.loads(await reader.read())
        except (OSError, TimeoutError, ValueError) as error:
            raise Gone("the agent does not answer") from error
        if "declined" in reply:
            raise RequestDeclined(clean(reply["declined"]))
        return clean(reply["said"])

    async def watch(self) -> AsyncIterator[Snapshot | None]:
        """Yield each snapshot, and None when the agent is gone; for ever, connecting again."""
        wait = _FIRST_WAIT
        while True:
            with suppress(Gone, OSError, ValueError, KeyError):
                async for told in self._told({"do": "watch"}):
                    wait = _FIRST_WAIT
                    yield read(told[-1])  # of those that came together only the newest counts
            yield None
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def output(self, job: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield what a job's command wrote, and how it ended, in portions as they come."""
        with suppress(Gone, OSError, ValueError):
            async for told in self._told({"do": "output", "job": job}):
                yield told

    async def _told(self, request: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the lines of an answer, all that came together at once."""
        async with self._speak(request) as reader:
            rest: list[bytes] = []
            while chunk := await reader.read(_CHUNK):
                *whole, last = chunk.split(b"\n")
                if whole:
                    whole[0] = b"".join([*rest, whole[0]])
                    rest = []
                    yield [json.loads(line) for line in whole]
                    await asyncio.sleep(0)  # whoever shows it has a turn, however fast it comes
                rest.append(last)

    @asynccontextmanager
    async def _speak(self, request: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
        folder = self._open()
        try:
            # A socket's path has 108 bytes at most, a folder's may be longer.
            reader, writer = await asyncio.open_unix_connection(
                f"/proc/self/fd/{folder}/{_SOCKET}", limit=_CHUNK
            )
        except OSError as error:
            raise Gone("no interactive agent of this user is running here") from error
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
            raise Gone("this interactive agent is another user's") from error
        except OSError as error:
            raise Gone("no interactive agent of this user is running here") from error
        if os.fstat(folder).st_uid != os.geteuid():
            os.close(folder)
            raise Gone("this interactive agent is another user's")
        return folder
