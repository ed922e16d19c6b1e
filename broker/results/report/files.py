"""Replace several files atomically."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from broker.results.report.csv_table import report_csv
from broker.results.report.page import report_html

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
    write_atomically(files)


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write files; all temporary files are synced before the first file is replaced.

    Raises:
        OSError: a file could not be written; the existing files are unchanged.
    """
    with ExitStack() as cleanup:
        temporary_files = {}
        for file, body in files.items():
            try:
                temporary_files[file] = _write_temporary(file, body, cleanup)
            except OSError as error:  # it may name no file, or the temporary one
                raise OSError(error.errno, error.strerror, str(file)) from error
        for file, temporary in temporary_files.items():
            temporary.replace(file)


def _write_temporary(file: Path, body: bytes, cleanup: ExitStack) -> Path:
    number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:100]}.")
    cleanup.callback(_remove, Path(name))
    with os.fdopen(number, "wb") as temporary:
        os.fchmod(number, _mode(file))
        temporary.write(body)
        temporary.flush()
        os.fsync(number)
    return Path(name)


def _mode(file: Path) -> int:
    """Return the mode of the existing file, or the default mode of a new one."""
    with suppress(FileNotFoundError):
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _remove(file: Path) -> None:
    with suppress(FileNotFoundError):
        file.unlink()
