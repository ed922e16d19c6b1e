"""A distribution point in a folder, such as a shared one or that of a web server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from broker.packages.points.point import NotThere, PointError, PointFile, Progress

_CHUNK = 1024 * 1024
_TEMPORARY = ".writing-"


class FolderPoint:
    """A folder that holds the files of packages."""

    def __init__(self, address: str) -> None:
        """Take a path, or file:///PATH.

        Raises:
            PointError: it is no path of this machine.
        """
        path = Path(address.removeprefix("file://"))
        is_url = address.startswith("file://")
        if not (path.is_absolute() or (not is_url and (address.startswith(".") or path.is_dir()))):
            raise PointError(f"{address}: is not a point: write /FOLDER, https://... or s3://...")
        self._root = path.absolute()

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._root)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file for reading."""
        with self._errors(path), (self._root / path).open("rb") as file:
            yield file

    def size(self, path: str) -> int | None:
        """Return the size of a file; None if it is not there."""
        try:
            with self._errors(path):
                return (self._root / path).stat().st_size
        except NotThere:
            return None

    def write(
        self, path: str, source: BinaryIO, size: int, progress: Progress | None = None
    ) -> None:
        """Write a file under another name, then rename it."""
        target = self._root / path
        temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name[-40:]}")
        with self._errors(path):
            if not self._root.is_dir():
                raise PointError(f"{self.url}: is not a folder; make it first: mkdir {self.url}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    self._copy(source, file, size, progress)
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def _copy(self, source: BinaryIO, file: BinaryIO, size: int, progress: Progress | None) -> None:
        written = 0
        while data := source.read(_CHUNK):
            written += len(data)
            file.write(data)
            if progress:
                progress(len(data))
        if written != size:
            raise PointError(f"{self.url}: {written:,} bytes were read, not {size:,}")
        file.flush()

    def remove(self, path: str) -> None:
        """Remove a file, and the folders that are empty then."""
        with self._errors(path):
            target = self._root / path
            target.unlink(missing_ok=True)
            try:
                while (target := target.parent) != self._root:
                    target.rmdir()
            except OSError:
                pass  # it is not empty

    def walk(self, folder: str) -> Iterator[PointFile]:
        """Yield all files below a folder; none if it is not there."""
        with self._errors(folder):
            for here, _, names in os.walk(self._root / folder):
                for name in names:
                    file = Path(here, name)
                    status = file.stat()
                    path = file.relative_to(self._root).as_posix()
                    yield PointFile(path, status.st_size, status.st_mtime)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotThere(f"{self.url}: {path}: is not there") from error
        except OSError as error:
            raise PointError(f"{self.url}: {path}: {error.strerror}") from error
