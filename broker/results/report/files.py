"""Files that are written whole, or not at all."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from broker.results.report.page import report_html
from broker.results.report.sheet import report_csv

if TYPE_CHECKING:
    from broker.results.report.content import ReportContent


def write_report(
    report: "ReportContent", *, html: str | Path | None = None, csv: str | Path | None = None
) -> None:
    """Write a job's report to an HTML file, a CSV file, or both: all of it or nothing.

    Raises:
        OSError: a file cannot be written; existing files are unchanged.
    """
    files = {}
    if html is not None:
        files[Path(html)] = report_html(report).encode()
    if csv is not None:
        files[Path(csv)] = report_csv(report).encode()
    write_whole(files)


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files: all are on the disk beside their places before the first takes its own.

    Raises:
        OSError: one could not be written; what was there is as it was.
    """
    with ExitStack() as left:
        written = {}
        for file, body in files.items():
            try:
                written[file] = _beside(file, body, left)
            except OSError as error:  # the file's name is not always in it, or is the other's
                raise OSError(error.errno, error.strerror, str(file)) from error
        for file, beside in written.items():
            beside.replace(file)


def _beside(file: Path, body: bytes, left: ExitStack) -> Path:
    number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:100]}.")
    left.callback(_remove, Path(name))
    with os.fdopen(number, "wb") as beside:
        os.fchmod(number, _mode(file))
        beside.write(body)
        beside.flush()
        os.fsync(number)
    return Path(name)


def _mode(file: Path) -> int:
    """Return the mode of the file that is replaced, or what a new one would have."""
    with suppress(FileNotFoundError):
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _remove(file: Path) -> None:
    with suppress(FileNotFoundError):
        file.unlink()
