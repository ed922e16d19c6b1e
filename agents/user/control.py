"""How windows and a user's choices reach the running interactive agent: a line of JSON each way.

What is to be watched is answered by lines until it ends, or the asker goes.

The socket lies in the agent's own folder, so that nobody but its user can speak to it.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from agents.store.state_folder import StateError, open_own_directory
from broker.amqp.timeouts import timeout
from schemas.errors import PcmError
from schemas.names import check_text

_SOCKET = "control.sock"
_LINE_LIMIT = 64 * 1024
_LIMIT = 10.0
_REASON_LENGTH = 1000
_PEER = struct.Struct("3i")  # process, user, group

Request = dict[str, Any]
Stream = AsyncGenerator[dict[str, Any], None]
Answer = str | Stream


class Declined(PcmError):
    """The agent does not do what was asked; the text says why."""


async def serve(directory: Path, answer: Callable[[Request], Awaitable[Answer]]) -> None:
    """Answer requests until cancelled; `answer` returns what to tell, or raises Declined."""
    speaking: set[asyncio.Task[None]] = set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            speaking.add(task)
            task.add_done_callback(speaking.discard)
        try:
            await _speak(reader, writer, answer)
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked is gone
        except asyncio.CancelledError:
            pass  # the agent stops: whoever watches sees the end
        finally:
            writer.close()

    with suppress(FileNotFoundError):
        (directory / _SOCKET).unlink()
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A socket's path has 108 bytes at most, a folder's may be longer: reach it by its file.
        path = f"/proc/self/fd/{folder}/{_SOCKET}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        (directory / _SOCKET).chmod(0o600)
        server = await asyncio.start_unix_server(speak, sock=listener, limit=_LINE_LIMIT)
        try:
            # Not serve_forever(): from Python 3.12.1 on, when cancelled, it waits for its clients.
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in speaking:
                task.cancel()
            await asyncio.gather(*speaking, return_exceptions=True)
            with suppress(FileNotFoundError):
                (directory / _SOCKET).unlink()
    finally:
        os.close(folder)


async def _speak(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[Request], Awaitable[Answer]],
) -> None:
    async with timeout(_LIMIT):
        try:
            line = await reader.readline()  # first: what is left unread would cost the reply
            _check_peer(writer)
            told = await answer(_read(line))
        except (Declined, StateError, ValueError, KeyError, TypeError) as error:
            told = ""
            _write(writer, {"declined": str(error) or "not understood"})
        if isinstance(told, str):
            if told:
                _write(writer, {"said": told})
            await writer.drain()
            return
    await _stream(reader, writer, told)


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Refuse another user, whatever the modes of folder and socket became."""
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(credentials)
    if uid != os.geteuid():
        raise Declined("this agent serves another user")


def _read(line: bytes) -> Request:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Declined("not understood: a request is one line of JSON") from error
    if not isinstance(request, dict):
        raise Declined("not understood: a request is a JSON object")
    return request


def _write(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    writer.write(json.dumps(reply).encode() + b"\n")


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: Stream
) -> None:
    """Send lines as fast as they are taken, until they end or the asker goes."""

    async def send() -> None:
        async with aclosing(lines):
            async for line in lines:
                _write(writer, line)
                await writer.drain()

    async def gone() -> None:
        while await reader.read(_LINE_LIMIT):
            pass  # nothing more is asked here

    tasks = {asyncio.create_task(send()), asyncio.create_task(gone())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def text_of(request: Request, name: str) -> str:
    """Return a request's word.

    Raises:
        Declined: it is missing, or no text.
    """
    value = request.get(name)
    try:
        if isinstance(value, str):
            return check_text(value)
    except ValueError as error:
        raise Declined(f"{name}: {error}") from error
    raise Declined(f"{name}: must be text")


def read_reason(value: object) -> str:
    """Return a decline's reason.

    Raises:
        Declined: it is no text, or too long.
    """
    try:
        if isinstance(value, str) and len(value) <= _REASON_LENGTH:
            return check_text(value)
    except ValueError as error:
        raise Declined(f"--reason: {error}") from error
    raise Declined(f"--reason: must be text of {_REASON_LENGTH} characters at most")


def ask(directory: Path, request: dict[str, Any]) -> str:
    """Ask the agent of a folder for something; return what it says.

    Raises:
        StateError: no agent runs there, or it is another user's.
        Declined: it does not do it.
    """
    try:
        folder = open_own_directory(directory)
    except OSError as error:
        raise StateError(f"no interactive agent here: {directory}: {error.strerror}") from error
    try:
        with socket.socket(socket.AF_UNIX) as speaker:
            speaker.settimeout(_LIMIT)
            speaker.connect(f"/proc/self/fd/{folder}/{_SOCKET}")
            speaker.sendall(json.dumps(request).encode() + b"\n")
            with speaker.makefile("rb") as reader:
                reply = json.loads(reader.readline(_LINE_LIMIT))
    except (OSError, ValueError) as error:
        raise StateError(f"the interactive agent of {directory} does not answer") from error
    finally:
        os.close(folder)
    if "declined" in reply:
        raise Declined(reply["declined"])
    return str(reply["said"])
