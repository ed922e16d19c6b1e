"""The sockets of agents: a request is a line of JSON, and so is its reply.

Some requests are answered by a stream of lines, until the stream ends or the client leaves.

The control socket of an interactive agent is in its own folder, so that only its user can connect.
"""

import asyncio
import json
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from agents.store.state_folder import StateError, open_own_directory, set_aside
from broker.amqp.timeouts import timeout
from schemas.errors import PcmError
from schemas.names import check_text

CONTROL_SOCKET = "control.sock"
_LINE_LIMIT = 64 * 1024
_LIMIT = 10.0
_REASON_LENGTH = 1000
_PEER = struct.Struct("3i")  # process, user, group

Request = dict[str, Any]
Stream = AsyncGenerator[dict[str, Any], None]
Answer = str | Stream


class RequestRejected(PcmError):
    """The agent rejects a request; the text says why."""


async def serve_control_socket(
    directory: Path,
    answer: Callable[[Request], Awaitable[Answer]],
    name: str = CONTROL_SOCKET,
    connections: int | None = None,
) -> None:
    """Serve requests until cancelled.

    Args:
        directory: the folder of the socket.
        answer: returns the text or the stream for a request, or raises RequestRejected.
        name: the name of the socket.
        connections: how many each user of the machine may have; None: only this agent's user.

    Raises:
        OSError: the socket cannot be made.
    """
    clients = _Clients(answer, connections)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = _listen(directory, folder, name, 0o600 if connections is None else 0o666)
        try:
            server = await asyncio.start_unix_server(
                clients.serve, sock=listener, limit=_LINE_LIMIT
            )
        except BaseException:  # also cancelled
            listener.close()
            raise
        try:
            # Not serve_forever(): since Python 3.12.1, its cancellation waits for the clients.
            await asyncio.Event().wait()
        finally:
            server.close()
            await clients.cancel()
            with suppress(FileNotFoundError):
                (directory / name).unlink()
    finally:
        os.close(folder)


class _Clients:
    """The connected clients of a socket; `limit`: of each user, None for this agent's user only."""

    def __init__(self, answer: Callable[[Request], Awaitable[Answer]], limit: int | None) -> None:
        self._answer = answer
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[int] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new client."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        user_id = _peer_of(writer)
        self._counts[user_id] += 1
        try:
            if self._limit is None or self._counts[user_id] <= self._limit:
                await _serve_client(reader, writer, self._answer, is_shared=self._limit is not None)
        except (OSError, TimeoutError, ValueError):
            pass  # the client has disconnected
        except asyncio.CancelledError:
            pass  # the agent stops: its clients see the end of the stream
        finally:
            writer.close()
            self._counts[user_id] -= 1

    async def cancel(self) -> None:
        """Disconnect all clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _listen(directory: Path, folder: int, name: str, mode: int) -> socket.socket:
    """Return the bound socket of a folder; `folder` is the folder's descriptor."""
    _remove(directory / name)
    listener = socket.socket(socket.AF_UNIX)
    try:
        # A socket's path has 108 bytes at most; the folder's can be longer, so use its descriptor.
        listener.bind(f"/proc/self/fd/{folder}/{name}")
        (directory / name).chmod(mode)
    except OSError:
        listener.close()
        raise
    return listener


def _remove(path: Path) -> None:
    """Remove the socket of a former run; set aside anything else."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            path.unlink()
        else:
            set_aside(path)


async def _serve_client(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    is_shared: bool,
) -> None:
    async with timeout(_LIMIT):
        try:
            line = await reader.readline()  # first: closing with unread data can lose the reply
            if not is_shared:
                _check_peer(writer)
            reply = await answer(_read(line))
        except (RequestRejected, StateError, ValueError, KeyError, TypeError) as error:
            reply = ""
            _write(writer, {"error": str(error) or "invalid request"})
        if isinstance(reply, str):
            if reply:
                _write(writer, {"message": reply})
            await writer.drain()
            return
    await _stream(reader, writer, reply)


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Reject another user, even if the modes of the folder or the socket were changed."""
    if _peer_of(writer) != os.geteuid():
        raise RequestRejected("this agent serves another user")


def _peer_of(writer: asyncio.StreamWriter) -> int:
    return peer_of(writer.get_extra_info("socket"))


def peer_of(connection: Any) -> int:
    """Return the id of the user whose process is at the other end of a connection."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, user_id, _ = _PEER.unpack(credentials)
    return int(user_id)


def _read(line: bytes) -> Request:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestRejected("invalid request: must be one line of JSON") from error
    if not isinstance(request, dict):
        raise RequestRejected("invalid request: must be a JSON object")
    return request


def _write(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    writer.write(json.dumps(reply).encode() + b"\n")


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: Stream
) -> None:
    """Send lines at the client's speed, until they end or the client disconnects."""

    async def send() -> None:
        async with aclosing(lines):
            async for line in lines:
                _write(writer, line)
                await writer.drain()

    async def wait_for_disconnect() -> None:
        while await reader.read(_LINE_LIMIT):
            pass  # a connection has one request

    tasks = {asyncio.create_task(send()), asyncio.create_task(wait_for_disconnect())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def text_field(request: Request, name: str) -> str:
    """Return a text field of a request.

    Raises:
        RequestRejected: it is missing, or not text.
    """
    value = request.get(name)
    try:
        if isinstance(value, str):
            return check_text(value)
    except ValueError as error:
        raise RequestRejected(f"{name}: {error}") from error
    raise RequestRejected(f"{name}: must be text")


def read_reason(value: object) -> str:
    """Return the reason for declining a job.

    Raises:
        RequestRejected: it is not text, or too long.
    """
    try:
        if isinstance(value, str) and len(value) <= _REASON_LENGTH:
            return check_text(value)
    except ValueError as error:
        raise RequestRejected(f"--reason: {error}") from error
    raise RequestRejected(f"--reason: must be text of {_REASON_LENGTH} characters at most")


def ask(directory: Path, request: dict[str, Any]) -> str:
    """Send a request to the agent of a folder; return the message of its reply.

    Raises:
        StateError: no agent runs there, or it is another user's.
        RequestRejected: the agent rejects the request.
    """
    try:
        folder = open_own_directory(directory)
    except OSError as error:
        raise StateError(f"no interactive agent here: {directory}: {error.strerror}") from error
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LIMIT)
            connection.connect(f"/proc/self/fd/{folder}/{CONTROL_SOCKET}")
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as reader:
                reply = json.loads(reader.readline(_LINE_LIMIT))
    except (OSError, ValueError) as error:
        raise StateError(f"the interactive agent of {directory} does not answer") from error
    finally:
        os.close(folder)
    if "error" in reply:
        raise RequestRejected(reply["error"])
    return str(reply["message"])
