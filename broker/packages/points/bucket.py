"""A distribution point in a bucket, by fsspec: S3, and what else has a library for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO

from broker.packages.points.point import NotThere, PointError, PointFile, Progress

_CHUNK = 8 * 1024 * 1024


class BucketPoint:
    """A bucket that holds the files of packages.

    Its login and its endpoint are those of the library; for S3: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, or ~/.aws.
    """

    def __init__(self, address: str) -> None:
        """Take a URL such as s3://BUCKET/PATH.

        Raises:
            PointError: the library for it is not installed.
        """
        self.url = address.rstrip("/")
        try:
            import fsspec  # an optional library

            # Listings must not be kept: others publish, too.
            self._files, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            scheme = address.partition("://")[0]
            text = f"pip install 'package-command-manager[{scheme}]'"
            raise PointError(
                f"{self.url}: needs a library that is not installed: {text} ({error})"
            ) from error
        except Exception as error:  # each library has its own errors
            raise PointError(f"{self.url}: {error}") from error
        self._root = str(root).rstrip("/")

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file for reading."""
        with self._errors(path), self._files.open(f"{self._root}/{path}", "rb") as file:
            yield file

    def size(self, path: str) -> int | None:
        """Return the size of a file; None if it is not there."""
        try:
            with self._errors(path):
                return int(self._files.info(f"{self._root}/{path}")["size"])
        except NotThere:
            return None

    def write(
        self, path: str, source: BinaryIO, size: int, progress: Progress | None = None
    ) -> None:
        """Write a file; it is there when it is complete."""
        written = 0
        with self._errors(path), self._files.open(f"{self._root}/{path}", "wb") as file:
            while data := source.read(_CHUNK):
                written += len(data)
                file.write(data)
                if progress:
                    progress(len(data))
            if written != size:
                file.discard()
                raise PointError(f"{self.url}: {written:,} bytes were read, not {size:,}")

    def remove(self, path: str) -> None:
        """Remove a file."""
        try:
            with self._errors(path):
                self._files.rm_file(f"{self._root}/{path}")
        except NotThere:
            pass

    def walk(self, folder: str) -> Iterator[PointFile]:
        """Yield all files below a folder; none if it is not there."""
        try:
            with self._errors(folder):
                found: dict[str, Any] = self._files.find(f"{self._root}/{folder}", detail=True)
        except NotThere:
            return
        for path, info in found.items():
            written_at = info.get("LastModified") or info.get("created") or 0.0
            if isinstance(written_at, datetime):
                written_at = written_at.timestamp()
            yield PointFile(path[len(self._root) + 1 :], int(info["size"]), float(written_at))

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotThere(f"{self.url}: {path}: is not there") from error
        except PointError:
            raise
        except Exception as error:  # each library has its own errors
            text = str(error).partition("\n")[0] or type(error).__name__
            raise PointError(f"{self.url}: {path}: {text}") from error
