"""Serve the archives in the cache to neighbours, for which this workstation is a point.

Only archives are served, by their sums: who does not know one gets nothing. What a neighbour gets
it verifies, as from any point; manifests it gets from its other points.
"""

import asyncio
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from agents.content.cache import open_archive
from agents.store.state_folder import CONTENT, PACKAGES
from broker.amqp.timeouts import timeout
from broker.content.archive import WrongContent
from broker.log import get_logger

_log = get_logger()
_REQUEST = re.compile(rb"(GET|HEAD) /sha256/([0-9a-f]{2})/([0-9a-f]{62}) HTTP/1\.[01]\r\n")
_RANGE = re.compile(rb"\r\nRange: *bytes=(\d{1,15})-\r\n", re.IGNORECASE)
_IF_RANGE = re.compile(rb'\r\nIf-Range: *"([^"\r\n]*)"', re.IGNORECASE)
_HEAD_LIMIT = 8 * 1024
_TIME_LIMIT = 10.0  # for the request
_LEAST_RATE = 16 * 1024  # bytes a second; a slower neighbour is cut off, and resumes
_CONNECTIONS = 16
_RETRY = 30.0


class Sharing:
    """The server for neighbours."""

    def __init__(self, address: tuple[str, int], state_dir: Path) -> None:
        self._address = address
        self._folder = state_dir / CONTENT / PACKAGES
        self._count = 0

    async def run(self) -> None:
        """Serve until cancelled; where the address is not free, try again."""
        host, port = self._address
        while True:
            try:
                server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_LIMIT)
            except OSError as error:
                _log.warning("sharing.failed", reason=f"PCM_SHARE_CACHE: {error}")
                await asyncio.sleep(_RETRY)
                continue
            _log.info("sharing.started", port=server.sockets[0].getsockname()[1])
            try:
                await asyncio.Event().wait()
            finally:
                server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        try:
            if self._count > _CONNECTIONS:
                _answer(writer, "503 Service Unavailable", "Retry-After: 30")
                return
            async with timeout(_TIME_LIMIT):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._reply(head, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the neighbour has left, or does not ask
        except asyncio.CancelledError:
            pass  # the agent stops
        finally:
            self._count -= 1
            writer.close()

    async def _reply(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        request = _REQUEST.match(head)
        if request is None:
            _answer(writer, "404 Not Found")
            return
        method, first, rest = request.groups()
        sha256 = (first + rest).decode()
        try:
            with open_shared(self._folder / f"{sha256}.archive") as file:
                await self._send(method, head, sha256, file, writer)
        except (OSError, WrongContent):
            _answer(writer, "404 Not Found")

    async def _send(
        self, method: bytes, head: bytes, sha256: str, file: BinaryIO, writer: asyncio.StreamWriter
    ) -> None:
        size = file.seek(0, 2)
        wanted, condition = _RANGE.search(head), _IF_RANGE.search(head)
        offset = int(wanted[1]) if wanted else 0
        if condition and condition[1].decode(errors="replace") != sha256:
            offset = 0
        if offset > size:
            _answer(writer, "416 Range Not Satisfiable", f"Content-Range: bytes */{size}")
            return
        lines = [f'ETag: "{sha256}"', "Content-Type: application/octet-stream"]
        if offset:
            lines.append(f"Content-Range: bytes {offset}-{size - 1}/{size}")
        status = "206 Partial Content" if offset else "200 OK"
        _answer(writer, status, *lines, length=size - offset)
        if method == b"GET" and offset < size:
            await writer.drain()
            loop = asyncio.get_running_loop()
            async with timeout(_TIME_LIMIT + size / _LEAST_RATE):
                await loop.sendfile(writer.transport, file, offset)


def open_shared(path: Path) -> BinaryIO:
    """Open an archive.

    Raises:
        WrongContent: it is no regular file.
        OSError: it is not there.
    """
    return os.fdopen(open_archive(path), "rb")


def _answer(writer: asyncio.StreamWriter, status: str, *lines: str, length: int = 0) -> None:
    head = (f"HTTP/1.1 {status}", f"Content-Length: {length}", "Connection: close", *lines)
    with suppress(OSError):
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
