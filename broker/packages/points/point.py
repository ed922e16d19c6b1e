"""What a distribution point can do, and which one an address means."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol

from schemas.errors import PcmError

_BUCKETS = {"s3", "gs", "az"}
Progress = Callable[[int], None]


class PointError(PcmError):
    """A distribution point cannot be used; the text names it and the reason."""


class NotThere(PointError):
    """A distribution point does not have a file."""


class CannotList(PointError):
    """A web server cannot list its files."""


class PointFile(NamedTuple):
    """A file of a point: its path, its size in bytes, and when it was written."""

    path: str
    size: int
    written_at: float


class Point(Protocol):
    """A distribution point. Each call can raise PointError; paths are relative, with `/`."""

    @property
    def url(self) -> str:
        """Its address, without a password."""

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading.

        Raises:
            NotThere: the point does not have it.
        """

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None if the point does not have it."""

    def write(
        self, path: str, source: BinaryIO, size: int, progress: Progress | None = None
    ) -> None:
        """Write a file, or replace it; readers see the old one or the new one, whole."""

    def remove(self, path: str) -> None:
        """Remove a file; it need not be there."""

    def walk(self, folder: str) -> Iterator[PointFile]:
        """Yield all files below a folder.

        Raises:
            CannotList: the point cannot.
        """


def read_file(point: Point, path: str, limit: int) -> bytes:
    """Return the content of a small file.

    Raises:
        NotThere: the point does not have it.
        PointError: it cannot be read, or is over the limit.
    """
    with point.open(path) as file:
        parts, left = [], limit + 1
        while left and (data := file.read(min(left, 1024 * 1024))):
            parts.append(data)
            left -= len(data)
    if not left:
        raise PointError(f"{point.url}: {path}: is over the limit of {limit:,} bytes")
    return b"".join(parts)


def open_point(address: str) -> Point:
    """Return the distribution point of an address; it is not asked anything yet.

    Args:
        address: a folder, https://HOST/PATH, or the URL of a bucket, such as s3://BUCKET/PATH.

    Raises:
        PointError: the address means no point.
    """
    scheme, separator, _ = address.partition("://")
    if not separator or scheme == "file":
        from broker.packages.points.folder import FolderPoint

        return FolderPoint(address)
    if scheme in {"http", "https"}:
        from broker.packages.points.web import WebPoint

        return WebPoint(address)
    if scheme not in _BUCKETS:
        raise PointError(f"{address}: is not a point: write /FOLDER, https://... or s3://...")
    from broker.packages.points.bucket import BucketPoint

    return BucketPoint(address)
