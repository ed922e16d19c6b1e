"""Show the content that the agents of a job's workstations fetch."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from broker.cli.terminal import Column, print_table
from broker.cli.time_formats import iso
from broker.history.queries.rows import WAITING
from broker.packages.output import size_text
from schemas.reports.packages import ContentState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.history import History
    from broker.history.queries.packages import ContentRow
    from broker.history.queries.rows import OutcomeRow

_SHOWN = 20
_COLUMNS = (
    Column("workstation", least=12),
    Column("package", least=12),
    Column("state"),
    Column("received", right=True),
    Column("rate", rank=1, right=True),
    Column("reason", least=16),
)


def downloads_of(
    history: "History", job_id: str, outcomes: "Sequence[OutcomeRow]"
) -> "list[ContentRow]":
    """Return the content that a job needs, where it has not started yet."""
    job = history.jobs.body(job_id)
    if job is None or job.package is None:
        return []
    waiting = {outcome.workstation for outcome in outcomes if outcome.state in WAITING}
    return [row for row in history.packages.contents(job.package) if row.workstation in waiting]


def print_downloads(downloads: "Sequence[ContentRow]") -> None:
    """Print a line with how many downloads are in each state, and those that are not ready."""
    if not downloads:
        return
    counts = Counter(row.state for row in downloads)
    line = ", ".join(f"{counts[state]:,} {state}" for state in ContentState if counts[state])
    rates = sum(row.rate for row in downloads if row.state == ContentState.FETCHING)
    print(f"\nDownloads: {line}" + (f", {size_text(rates)}/s in all" if rates else ""))
    open_rows = [row for row in downloads if row.state != ContentState.READY]
    if open_rows:
        print_table(_COLUMNS, [_cells(row) for row in open_rows[:_SHOWN]])
    if len(open_rows) > _SHOWN:
        print(f"... and {len(open_rows) - _SHOWN:,} more; --json shows them")


def _cells(row: "ContentRow") -> list[str]:
    is_fetching = row.state == ContentState.FETCHING
    return [
        row.workstation,
        f"{row.name}@{row.version}",
        row.state,
        f"{row.percent} %" if row.size else "",
        f"{size_text(row.rate)}/s" if is_fetching else "",
        row.reason,
    ]


def download_fields(row: "ContentRow") -> dict[str, Any]:
    """Return the JSON fields of a download."""
    return vars(row) | {"percent": row.percent, "at": iso(row.at)}


def download_text(row: "ContentRow") -> str:
    """Return what is known of a download, as a part of a sentence."""
    package = f"{row.name}@{row.version}"
    if row.state == ContentState.FETCHING:
        return f"{package} is being fetched: {row.percent} %, {size_text(row.rate)}/s"
    because = f": {row.reason}" if row.reason else ""
    return f"the content of {package} is not there yet{because}"
