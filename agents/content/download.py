"""Download a file of known size and sum into a part, which a later download resumes.

It runs in a thread of its own: a folder on a dead network's disk can block it for ever.
"""

import asyncio
import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from agents.content.transport import CHUNK, NotResumable, Opened, Request, Unavailable
from schemas.points import AgentPoint
from schemas.text import listed

_T = TypeVar("_T")
_WATCH = 1.0
_WINDOW = 30.0  # seconds in which a server sends at least so many bytes, or is left:
_LEAST = 32 * 1024
_NEW = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_ABORT_LIMIT = 2.0


class RateLimit:
    """A limit of bytes a second that all downloads share; 0: none."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> float:
        """Count bytes that came; return for how many seconds no more may come."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self._rate
            return self._free_at - now


@dataclass
class Meter:
    """What a download has received; written by its thread, read by others.

    Attributes:
        received: bytes of the file that are there, with those of an earlier download.
        throttled: seconds for which our own limit has held it back.
    """

    received: int = 0
    throttled: float = 0.0


class Attempt:
    """One attempt at one point, in a thread of its own."""

    def __init__(self, request: Request, meter: Meter) -> None:
        self._request = request
        self._meter = meter
        self._thread: threading.Thread | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether its thread did not end, as on a network's disk that does not answer."""
        return self._thread is not None and self._thread.is_alive()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run the work; end it if the point sends too little, or if this is cancelled.

        Raises:
            Unavailable: the point does not serve the file.
            OSError: the disk does not take it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def done(result: _T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type] # of type _T then

        def in_thread() -> None:
            result: _T | None = None
            caught: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
                caught = error
            finally:
                self._request.close()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, result, caught)

        self._thread = threading.Thread(target=in_thread, name="fetch", daemon=True)
        self._thread.start()
        try:
            return await self._watch(future)
        except asyncio.CancelledError:
            self._request.abort("the agent stops")
            # Its part is written to the end; a folder on a dead disk is not waited for.
            await asyncio.wait({future}, timeout=_ABORT_LIMIT)
            raise

    async def _watch(self, future: "asyncio.Future[_T]") -> _T:
        meter = self._meter
        begin, received, throttled = time.monotonic(), meter.received, meter.throttled
        while True:
            done, _ = await asyncio.wait({future}, timeout=_WATCH)
            if done:
                return future.result()
            now = time.monotonic()
            waited = now - begin - (meter.throttled - throttled)
            if not 0 <= meter.received - received < _LEAST:  # less: it began anew
                begin, received, throttled = now, meter.received, meter.throttled
            elif waited >= _WINDOW:
                break
        point = self._request.point
        count = meter.received - received
        self._request.abort(f"{point}: is too slow: {count:,} bytes in {_WINDOW:g} s")
        done, _ = await asyncio.wait({future}, timeout=_ABORT_LIMIT)
        if done:
            return future.result()
        raise Unavailable(f"{point}: does not answer")


def read_small(request: Request, limit: int, meter: Meter) -> bytes:
    """Return a whole file of at most so many bytes.

    Raises:
        Unavailable: the point does not serve it, or it is larger.
    """
    opened = request.open()
    parts = []
    for data in opened.chunks:
        parts.append(data)
        meter.received += len(data)
        if meter.received > limit:
            raise Unavailable(f"{request.point}: sends more than {limit:,} bytes")
    return b"".join(parts)


class Part:
    """The part of a file that is there: the file itself, and beside it from where it came."""

    def __init__(self, path: Path, sha256: str, size: int) -> None:
        self.path = path
        self.sha256 = sha256
        self.size = size
        self._notes = path.with_suffix(".etag")

    @property
    def received(self) -> int:
        """The bytes that are there."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def etag_at(self, point: AgentPoint) -> str:
        """Return the ETag of the file at a point; empty if it came from another."""
        try:
            notes = json.loads(self._notes.read_text())
            return str(notes["etag"]) if notes["point"] == str(point) else ""
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def note(self, point: AgentPoint, etag: str) -> None:
        """Keep from where the part comes; a lost note costs a download, nothing else."""
        self._notes.write_text(json.dumps({"point": str(point), "etag": etag}))

    def remove(self) -> None:
        """Remove it."""
        for path in (self.path, self._notes):
            path.unlink(missing_ok=True)

    def complete(self, path: Path) -> None:
        """Rename the complete and verified part, which is on the disk."""
        self._notes.unlink(missing_ok=True)
        self.path.rename(path)


def fetch(request: Request, part: Part, limit: RateLimit, meter: Meter) -> None:
    """Download a file into its part; resume where it was left. At the end its sum is right.

    What another point sent before may be wrong: then it is downloaded again from its beginning, so
    that one bad point does not spoil what the others send.

    Raises:
        Unavailable: the point does not serve the file, or serves another one; what was received is
            kept if it can be right.
        OSError: the disk does not take it.
    """
    is_resumed = part.received > 0
    if _fetch_once(request, part, limit, meter):
        return
    part.remove()
    if not (is_resumed and _fetch_once(request, part, limit, meter)):
        part.remove()
        raise Unavailable(f"{request.point}: the SHA-256 of the archive is not the manifest's")


def _fetch_once(request: Request, part: Part, limit: RateLimit, meter: Meter) -> bool:
    """Download the rest of a file; return whether its sum is right."""
    point = request.point
    with os.fdopen(os.open(part.path, _NEW, 0o600), "r+b", buffering=0) as file:
        sha256 = _sum_existing(file, part, meter)
        if meter.received < part.size or part.size == 0:
            opened = _open(request, part, meter.received)
            if opened.size is not None and opened.start + opened.size != part.size:
                size = opened.start + opened.size
                raise Unavailable(f"{point}: has {size:,} bytes for an archive of {part.size:,}")
            if opened.start != meter.received:  # another version, or the server does not resume
                sha256 = _restart(file, meter)
            part.note(point, opened.etag)
            _receive(request, opened, file, part, limit, meter, sha256)
        os.fsync(file.fileno())
    if meter.received != part.size:
        missing = part.size - meter.received
        raise Unavailable(f"{point}: ended the file {missing:,} bytes too early")
    return sha256.hexdigest() == part.sha256


def _open(request: Request, part: Part, offset: int) -> Opened:
    try:
        return request.open(offset, part.etag_at(request.point))
    except NotResumable:
        return request.open()


def _restart(file: IO[bytes], meter: Meter) -> "hashlib._Hash":
    file.truncate(0)
    file.seek(0)
    meter.received = 0
    return hashlib.sha256()


def _sum_existing(file: IO[bytes], part: Part, meter: Meter) -> "hashlib._Hash":
    sha256 = hashlib.sha256()
    meter.received = 0
    while data := file.read(CHUNK):
        sha256.update(data)
        meter.received += len(data)
    return sha256 if meter.received <= part.size else _restart(file, meter)


def _receive(
    request: Request,
    opened: Opened,
    file: IO[bytes],
    part: Part,
    limit: RateLimit,
    meter: Meter,
    sha256: "hashlib._Hash",
) -> None:
    for data in opened.chunks:
        if meter.received + len(data) > part.size:
            part.remove()
            raise Unavailable(
                f"{request.point}: sends more than the {part.size:,} bytes of the archive"
            )
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        sha256.update(data)
        meter.received += len(data)
        wait = limit.take(len(data))
        meter.throttled += wait
        request.pause(wait)


def reasons(failures: dict[str, str]) -> str:
    """Return why no point served a file, in one line."""
    return listed(list(failures.values()), 2) or "no point is set: PCM_POINTS"


def tls_context(authorities: Path | None) -> ssl.SSLContext:
    """Return the TLS settings for points: always verified, TLS 1.2 or newer.

    Raises:
        OSError: the file cannot be read.
    """
    context = ssl.create_default_context(cafile=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
