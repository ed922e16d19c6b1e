"""A report as a sheet: CSV, a row a workstation."""

import csv
import io
import re

from broker.cli.time_formats import iso
from broker.history.queries import Pair
from broker.results.report.content import ReportContent

_COLUMNS = (
    "workstation", "state", "at", "agent", "exit_code", "signal", "duration", "restart_required",
    "until", "reason", "line",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def sheet_of(account: ReportContent) -> str:
    """Return what came of a job as CSV, times in UTC."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for pair in account.pairs:
        writer.writerow(map(_cell, _values(pair)))
    return file.getvalue()


def _values(pair: Pair) -> list[object]:
    times = {"at": iso(pair.at), "until": iso(pair.until)}
    return [times.get(column, getattr(pair, column)) for column in _COLUMNS]


def _cell(value: object) -> str:
    """Return a cell; one that a spreadsheet would take for a formula is text."""
    if isinstance(value, float):  # without an exponent
        return re.sub(r"(\.\d+?)0+$", r"\1", f"{value:.6f}")
    text = "" if value is None else str(value).replace("\0", "")
    return f"'{text}" if text.startswith(_FORMULA) else text
