"""A distribution point on a web server; publishing needs one that accepts PUT, as WebDAV does."""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BufferedIOBase
from typing import BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

from broker.packages.points.point import CannotList, NotThere, PointError, PointFile, Progress

_LIMIT = 30.0  # seconds, of each socket operation
_GRACE, _LEAST_RATE = 10.0, 1000  # after the seconds of grace, bytes a second on average
_STORED = {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT}
_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


class WebPoint:
    """A web server that holds the files of packages."""

    def __init__(self, address: str) -> None:
        """Take https://USER:PASSWORD@HOST:PORT/PATH; user, password and port may be missing.

        Raises:
            PointError: the address is wrong.
        """
        try:
            url = urlsplit(address)
            self._host, self._port = url.hostname or "", url.port
        except ValueError:
            self._host = ""
        if not self._host or url.query or url.fragment:
            shown = address.rpartition("@")[2]
            raise PointError(f"{shown}: is not a point: write https://HOST/PATH")
        self._secure = url.scheme == "https"
        self._path = url.path.rstrip("/")
        port = f":{self._port}" if self._port else ""
        self.url = f"{url.scheme}://{self._host}{port}{self._path}"
        self._headers = {"Accept-Encoding": "identity"}
        if url.username is not None:
            login = f"{unquote(url.username)}:{unquote(url.password or '')}"
            encoded = base64.b64encode(login.encode()).decode()
            self._headers["Authorization"] = f"Basic {encoded}"

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file for reading; one that comes too slowly is an error."""
        with self._request("GET", path) as response:
            reader = cast("BinaryIO", _Impatient(response, f"{self.url}: {path}"))
            try:
                yield reader
            except (HTTPException, OSError) as error:
                raise self._broken(path, error) from error

    def size(self, path: str) -> int | None:
        """Return the size of a file; None if it is not there, or the server does not say."""
        try:
            with self._request("HEAD", path) as response:
                length = response.headers.get("Content-Length", "")
                return int(length) if length.isdecimal() else None
        except NotThere:
            return None

    def write(
        self, path: str, source: BinaryIO, size: int, progress: Progress | None = None
    ) -> None:
        """Send a file with PUT."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        body = _Counted(source, size, progress)
        with self._request("PUT", path, headers, body) as response:
            response.read()
        if body.left:
            raise PointError(f"{self.url}: {path}: {body.left:,} bytes less were read than said")

    def remove(self, path: str) -> None:
        """Remove a file with DELETE."""
        try:
            with self._request("DELETE", path) as response:
                response.read()
        except NotThere:
            pass

    def walk(self, folder: str) -> Iterator[PointFile]:
        """Raise CannotList: a web server cannot."""
        raise CannotList(f"{self.url}: {folder}: a web server cannot list its files")

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: "_Counted | None" = None,
    ) -> Iterator[HTTPResponse]:
        connection = self._connection()
        try:
            try:
                target = quote(f"{self._path}/{path}")
                connection.request(method, target, body, {**self._headers, **(headers or {})})
                response = connection.getresponse()
            except (HTTPException, OSError) as error:
                raise self._broken(path, error) from error
            with response:  # it may have taken over the connection's socket
                self._check(method, path, response)
                yield response
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        if not self._secure:
            return HTTPConnection(self._host, self._port, timeout=_LIMIT)
        import ssl  # a folder needs none

        context = ssl.create_default_context()
        return HTTPSConnection(self._host, self._port, timeout=_LIMIT, context=context)

    def _check(self, method: str, path: str, response: HTTPResponse) -> None:
        status, place = response.status, f"{self.url}: {path}"
        if status == HTTPStatus.OK or (method != "GET" and status in _STORED):
            return
        if status in _GONE:
            raise NotThere(f"{place}: is not there")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            target = ascii(response.headers.get("Location", ""))[:200]
            raise PointError(f"{place}: redirects to {target}; name that address instead")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise PointError(f"{place}: {method} is not allowed ({status}); check the login")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            raise PointError(f"{place}: the server does not accept {method}; publish on its folder")
        raise PointError(f"{place}: {method}: {status} {response.reason[:80]}")

    def _broken(self, path: str, error: Exception) -> PointError:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return PointError(f"{self.url}: {path}: {text}")


class _Impatient(BufferedIOBase):
    """A response that is read until it comes too slowly."""

    def __init__(self, response: HTTPResponse, place: str) -> None:
        self._response, self._place = response, place
        self._began, self._received = time.monotonic(), 0

    def read(self, size: int | None = -1, /) -> bytes:
        parts, left = [], -1 if size is None else size
        while left and (data := self._response.read1(left)):
            parts.append(data)
            left -= len(data) if left > 0 else 0
            self._received += len(data)
            seconds = time.monotonic() - self._began - _GRACE
            if seconds > 0 and self._received < seconds * _LEAST_RATE:
                raise PointError(f"{self._place}: comes too slowly")
        if self._response.length and left:
            raise PointError(f"{self._place}: ends {self._response.length:,} bytes too early")
        return b"".join(parts)


class _Counted:
    """The content that is sent; reports its progress."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None) -> None:
        self._source, self._progress = source, progress
        self.left = size

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(min(size if size > 0 else self.left, self.left))
        self.left -= len(data)
        if self._progress and data:
            self._progress(len(data))
        return data
