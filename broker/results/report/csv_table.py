"""Format a report as CSV, a row for each workstation."""

import csv
import io
import re

from broker.cli.time_formats import iso
from broker.history.queries.rows import OutcomeRow
from broker.results.report.content import ReportContent

COLUMNS = (
    "workstation", "state", "at", "agent", "exit_code", "signal", "duration", "restart_required",
    "until", "reason", "line",
)  # fmt: skip
# A spreadsheet may take these as separators, too, also within quotes that are in mid-cell for it.
# The last four are full-width characters, which some languages' versions read like the others.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(rf"\A(?=[\t\r\n{_SIGNS}])|(?<=[;|\t\r\n])(?=\s*[{_SIGNS}])")


def report_csv(content: ReportContent) -> str:
    """Format a job's results as CSV with a row for each workstation; times are in UTC."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for outcome in content.outcomes:
        writer.writerow(map(_cell, _values(outcome)))
    return file.getvalue()


def _values(outcome: OutcomeRow) -> list[object]:
    times = {"at": iso(outcome.at), "until": iso(outcome.until)}
    return [times.get(column, getattr(outcome, column)) for column in COLUMNS]


def _cell(value: object) -> str:
    """Format a cell; quote each part that a spreadsheet could take for a formula."""
    if isinstance(value, float):  # without an exponent
        return re.sub(r"(\.\d+?)0+$", r"\1", f"{value:.6f}")
    text = "" if value is None else str(value).replace("\0", "")
    return _FORMULA.sub("'", text)
