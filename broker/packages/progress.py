"""A progress bar on a terminal's stderr, for work that takes more than a second."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DELAY = 1.0  # seconds


class ProgressBar:
    """A bar that appears after a second; call it with numbers of processed bytes."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = 0
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, count: int) -> None:
        """Add a number of processed bytes."""
        self._done += count
        if self._progress is None:
            if time.monotonic() - self._began < _DELAY or not sys.stderr.isatty():
                return
            self._progress, self._task = _start(self._title, self._total)
        assert self._task is not None  # noqa: S101 - set with the progress
        self._progress.update(self._task, completed=self._done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _start(title: str, total: int) -> "tuple[Progress, TaskID]":
    from rich.console import Console  # short work needs no bar
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.start()
    return progress, progress.add_task(title, total=total)
