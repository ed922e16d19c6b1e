"""What a report is made of, read from the history at one instant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.history.queries import FAILURES, RUNNING, WAITING, FailureGroup, JobRow, Pair
from broker.results.job_header import job_head
from schemas import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.history import History

_OPEN = (*WAITING, *RUNNING)
KINDS = ("succeeded", "failed", "other")
"""What ends are told apart as: successes, failures, and those that are neither."""


@dataclass(frozen=True)
class ReportContent:
    """What came of a job.

    Attributes:
        job: the job.
        head: what it is, a name and a text for each line.
        pairs: what came of it on each workstation.
        failures: the groups of those where it failed alike.
        gaps: what is missing from the history.
        now: as of when.
    """

    job: JobRow
    head: "Sequence[tuple[str, str]]"
    pairs: "Sequence[Pair]"
    failures: "Sequence[FailureGroup]"
    gaps: "Sequence[str]"
    now: float

    @property
    def kinds(self) -> dict[str, int]:
        """On how many workstations it is in a state of which kind."""
        counts = dict.fromkeys((*KINDS, "running", "waiting"), 0)
        for state, count in self.job.counts.items():
            counts[kind(state)] += count
        return counts


def read_report(history: "History", job_id: str) -> ReportContent:
    """Read the content of a job's report.

    Args:
        history: the history.
        job_id: the job's id, or its beginning.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
    """
    accounts = history.accounts
    row = accounts.find(job_id)
    return ReportContent(
        row,
        job_head(accounts, row),
        accounts.pairs(row.id),
        accounts.failures(row.id),
        accounts.gaps(),
        accounts.now,
    )


def kind(state: str) -> str:
    """Return as which of KINDS a state counts, or `running` or `waiting`."""
    if state in RUNNING:
        return "running"
    if state in WAITING:
        return "waiting"
    if state == State.SUCCEEDED:
        return "succeeded"
    return "failed" if state in FAILURES else "other"


def ends(account: ReportContent) -> list[tuple[float, dict[str, int]]]:
    """Return at each end how many there had been of each of KINDS."""
    found = sorted(
        (at, kind(pair.state))
        for pair in account.pairs
        if pair.state not in _OPEN and (at := _ended_at(account.job, pair)) is not None
    )
    counts = dict.fromkeys(KINDS, 0)
    points = []
    for at, of in found:
        counts[of] += 1
        points.append((at, counts.copy()))
    return points


def _ended_at(job: JobRow, pair: Pair) -> float | None:
    """Return when a job ended somewhere; of what nobody reported, the job itself tells."""
    if pair.at is not None:
        return pair.at
    if pair.state == State.CANCELLED:
        return job.cancelled_at
    return job.expires_at if pair.state == State.EXPIRED else None
