"""Read files of distribution points: over HTTP, or from a folder; in threads.

HTTP is Python's own `http.client`: it follows no redirect, uses no proxy and decompresses nothing
by itself, and adds no dependency to a program that runs as root. What a point says is never
trusted: callers know the size and the sum of what they read.
"""

import base64
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from time import time
from urllib.parse import urljoin, urlsplit

from schemas.errors import PcmError
from schemas.points import AgentPoint

CHUNK = 256 * 1024
_TIMEOUT = 30.0  # seconds without a byte; the caller's watchdog finds slow servers
_REDIRECTS = 5
_MAX_RETRY_AFTER = 24 * 3600.0
_MOVED = (301, 302, 303, 307, 308)
_OK, _PARTIAL, _BEYOND = 200, 206, 416


class Unavailable(PcmError):
    """A point does not have a file, or does not serve it; the text says why.

    Attributes:
        retry_after: seconds for which the point asks not to be tried again; 0: it does not ask.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NotResumable(Unavailable):
    """A point's file has no bytes at the offset that was asked for."""


@dataclass(frozen=True)
class Opened:
    """A file of a point that is being read.

    Attributes:
        start: the offset of its first byte; 0 where the server does not resume.
        etag: identifies the version of the file, for a later resumption; may be empty.
        size: the bytes that follow; None: not known.
        chunks: the bytes.
    """

    start: int
    etag: str
    size: int | None
    chunks: Iterator[bytes]


class Request:
    """One read of a file. `abort` ends it from another thread."""

    def __init__(self, point: AgentPoint, path: str, tls: Callable[[], ssl.SSLContext]) -> None:
        self.point = point
        self._path = path
        self._tls = tls
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None  # the connection passes it to the response
        self._response: HTTPResponse | None = None
        self._aborted = ""
        self._ended = threading.Event()

    def abort(self, reason: str) -> None:
        """Let the read fail with a reason, also where it waits for the server."""
        self._aborted = self._aborted or reason
        self._ended.set()
        if (opened := self._socket) is not None:
            with suppress(OSError):  # it is closed; not by TLS, which the reader uses now
                socket.socket.shutdown(opened, socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until `abort`."""
        if seconds > 0:
            self._ended.wait(seconds)
            self.check()

    def check(self) -> None:
        """Raise Unavailable if the read was aborted."""
        if self._aborted:
            raise Unavailable(self._aborted)

    def open(self, offset: int = 0, etag: str = "") -> Opened:
        """Open the file at an offset, if it is still the one that the ETag means.

        Raises:
            Unavailable: the point does not serve it.
        """
        if self.point.scheme == "file":
            return self._open_file(offset)
        try:
            return self._open_http(offset, etag)
        except (OSError, HTTPException) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connection."""
        for opened in (self._response, self._connection):
            if opened is not None:
                opened.close()

    def _failed(self, error: Exception) -> Unavailable:
        if self._aborted:
            return Unavailable(self._aborted)
        return Unavailable(f"{self.point}: {_explain(error)}")

    def _open_file(self, offset: int) -> Opened:
        path = Path(self.point.path) / self._path
        try:
            # On a network's disk all of these can wait.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Unavailable(f"file://{path}: {error.strerror}") from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            raise Unavailable(f"file://{path}: is not a regular file")
        offset = min(offset, status.st_size)
        return Opened(offset, "", status.st_size - offset, self._read_file(file, offset))

    def _read_file(self, file: int, offset: int) -> Iterator[bytes]:
        with open(file, "rb", buffering=0) as opened:
            try:
                opened.seek(offset)
                while data := opened.read(CHUNK):
                    self.check()
                    yield data
            except OSError as error:
                raise self._failed(error) from error

    def _open_http(self, offset: int, etag: str) -> Opened:
        url = f"{self.point.path}/{self._path}"
        seen = {url}
        while True:
            response = self._ask(url, offset, etag)
            if response.status not in _MOVED:
                break
            url = self._redirected(url, response)
            if url in seen or len(seen) > _REDIRECTS:
                raise Unavailable(f"{self.point}: redirects in a loop")
            seen.add(url)
        return self._opened(response, offset)

    def _ask(self, url: str, offset: int, etag: str) -> HTTPResponse:
        self.close()
        point = self.point
        self._connection = connection = (
            HTTPSConnection(point.host, point.port, timeout=_TIMEOUT, context=self._tls())
            if point.scheme == "https"
            else HTTPConnection(point.host, point.port, timeout=_TIMEOUT)
        )
        self.check()
        headers = {"Accept-Encoding": "identity", "User-Agent": "pcm-agent", "Connection": "close"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag:
                headers["If-Range"] = etag
        if point.login is not None:
            login = base64.b64encode(":".join(point.login).encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        connection.connect()
        self._socket = connection.sock
        self.check()  # before there was a socket, an abort could not close it
        connection.request("GET", url, headers=headers)
        self._response = connection.getresponse()
        return self._response

    def _redirected(self, url: str, response: HTTPResponse) -> str:
        """Return the path to which the point redirects: on itself only.

        Another host gets no login, and no point makes an agent ask other servers.
        """
        base = str(AgentPoint(self.point.scheme, self.point.host, self.point.port))
        target = urljoin(base + url, response.getheader("Location", ""))
        parts = urlsplit(target)
        wanted = urlsplit(base)
        try:
            same = (parts.scheme, parts.hostname, parts.port) == (
                wanted.scheme,
                wanted.hostname,
                wanted.port,
            )
        except ValueError:
            same = False
        if not same:
            raise Unavailable(
                f"{self.point}: redirects to {target[:200]!a}; a point serves its files itself"
            )
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def _opened(self, response: HTTPResponse, offset: int) -> Opened:
        status, point = response.status, self.point
        if status == _BEYOND and offset:
            raise NotResumable(f"{point}: has no more than {offset:,} bytes of {self._path}")
        if status not in (_OK, _PARTIAL):
            after = _retry_after(response.getheader("Retry-After"))
            raise Unavailable(
                f"{point}: {self._path}: {status} {response.reason[:80]!a}"
                + (f"; it asks to wait for {after:,.0f} s" if after else ""),
                after,
            )
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise Unavailable(f"{point}: {self._path}: is encoded, which was not asked for")
        if response.getheader("Content-Type", "").lower().startswith("text/html"):
            raise Unavailable(f"{point}: {self._path}: answers with a page in HTML, not the file")
        start = offset if status == _PARTIAL else 0
        if status == _PARTIAL:
            given = response.getheader("Content-Range", "")
            if not given.startswith(f"bytes {offset}-"):
                raise Unavailable(f"{point}: {self._path}: sends another range: {given[:80]!a}")
        etag = response.getheader("ETag", "")
        if not etag.startswith('"'):  # a weak one cannot identify bytes
            etag = ""
        return Opened(start, etag, response.length, self._read_http(response))

    def _read_http(self, response: HTTPResponse) -> Iterator[bytes]:
        try:
            # One system call each: `read` would wait for a whole chunk.
            while data := response.read1(CHUNK):
                self.check()
                yield data
        except (OSError, HTTPException) as error:
            raise self._failed(error) from error
        self.check()
        if response.length:
            raise Unavailable(f"{self.point}: ended the file {response.length:,} bytes too early")


def _retry_after(header: str | None) -> float:
    """Return the seconds in a Retry-After header; 0 if it has none that make sense."""
    if not header:
        return 0.0
    try:
        seconds = float(header) if header.strip().isdecimal() else _until(header)
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _until(header: str) -> float:
    return parsedate_to_datetime(header).timestamp() - time()


def _explain(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (PCM_POINTS_CA)"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, HTTPException):
        return f"does not speak HTTP: {type(error).__name__}: {str(error)[:80]!a}"
    return str(error)
