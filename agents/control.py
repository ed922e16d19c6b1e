"""How a user's choices reach the running interactive agent: one JSON line each way.

The socket lies in the agent's own folder, so that nobody but its user can speak to it.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents.state import StateError

_SOCKET = "control.sock"
_LINE_LIMIT = 64 * 1024
_LIMIT = 10.0


class Declined(Exception):
    """The agent does not do what was asked; the text says why."""


async def serve(directory: Path, answer: Callable[[dict[str, Any]], str]) -> None:
    """Answer requests until cancelled; `answer` returns what to tell, or raises Declined."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LIMIT):
                line = await reader.readline()
                try:
                    reply = {"said": answer(json.loads(line))}
                except (Declined, ValueError, KeyError, TypeError) as error:
                    reply = {"declined": str(error) or "not understood"}
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked is gone
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
            async with server:
                await server.serve_forever()
        finally:
            with suppress(FileNotFoundError):
                (directory / _SOCKET).unlink()
    finally:
        os.close(folder)


def ask(directory: Path, request: dict[str, Any]) -> str:
    """Ask the agent of a folder for something; return what it says.

    Raises:
        StateError: no agent runs there, or it is another user's.
        Declined: it does not do it.
    """
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
