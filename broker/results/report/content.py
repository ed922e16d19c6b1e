"""Read a report's content from the history, as of one instant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.history.queries.rows import FAILURES, RUNNING, WAITING, FailureGroup, JobRow, OutcomeRow
from broker.results.job_header import job_header
from schemas import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.history.history import History

_OPEN = (*WAITING, *RUNNING)
END_GROUPS = ("succeeded", "failures", "other")
"""The groups of ended states: successes, failures, and neither."""


@dataclass(frozen=True)
class ReportContent:
    """The results of a job.

    Attributes:
        job: the job.
        header: its description, a label and a text for each line.
        outcomes: its state on each workstation.
        failures: the groups of equal failures.
        gaps: what is missing from the history.
        now: the time of the report.
    """

    job: JobRow
    header: "Sequence[tuple[str, str]]"
    outcomes: "Sequence[OutcomeRow]"
    failures: "Sequence[FailureGroup]"
    gaps: "Sequence[str]"
    now: float

    @property
    def groups(self) -> dict[str, int]:
        """Return the number of workstations in each group of states."""
        counts = dict.fromkeys((*END_GROUPS, "running", "waiting"), 0)
        for state, count in self.job.counts.items():
            counts[state_group(state)] += count
        return counts


def read_report(history: "History", job_id: str) -> ReportContent:
    """Read the results of a job.

    Args:
        history: the history.
        job_id: the job's id, or its beginning.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
    """
    queries = history.jobs
    row = queries.find(job_id)
    return ReportContent(
        row,
        job_header(queries, row),
        queries.outcomes(row.id),
        queries.failures(row.id),
        queries.gaps(),
        queries.now,
    )


def state_group(state: str) -> str:
    """Return a state's group: one of END_GROUPS, `running` or `waiting`."""
    if state in RUNNING:
        return "running"
    if state in WAITING:
        return "waiting"
    if state == State.SUCCEEDED:
        return "succeeded"
    return "failures" if state in FAILURES else "other"


def ends(content: ReportContent) -> list[tuple[float, dict[str, int]]]:
    """Return the cumulative number of ends in each of END_GROUPS, at the time of each end."""
    ended = sorted(
        (at, state_group(outcome.state))
        for outcome in content.outcomes
        if outcome.state not in _OPEN and (at := _ended_at(content.job, outcome)) is not None
    )
    counts = dict.fromkeys(END_GROUPS, 0)
    points = []
    for at, group in ended:
        counts[group] += 1
        points.append((at, counts.copy()))
    return points


def _ended_at(job: JobRow, outcome: OutcomeRow) -> float | None:
    """Return when a job ended on a workstation; without a report, take the job's own time."""
    if outcome.at is not None:
        return outcome.at
    if outcome.state == State.CANCELLED:
        return job.cancelled_at
    return job.expires_at if outcome.state == State.EXPIRED else None
