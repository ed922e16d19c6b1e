"""Write reports, and the outcomes and results that follow from them.

The tables depend on the set of reports alone (`schemas.reports.report.furthest`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from broker.history.chunks import chunks
from broker.history.projection.upserts import RANK, put_tuples
from broker.history.schema import outcomes, reports, results
from schemas import Report, State
from schemas.reports.report import (
    ANSWERS,
    Rank,
    first_line,
    furthest,
    report_checksum,
    report_order,
    sort_key,
)

_MAX_LINE = 200
_OUTCOME = tuple(
    column.name for column in outcomes.columns if column.name not in outcomes.primary_key.columns
)
_NO_RESULT = (None, None, None, None, "")

_ORDER = slice(3, 6)  # the columns RANK, in a row of outcomes or results

_Pair = tuple[str, str]  # a job, and a workstation
_Row = tuple[Any, ...]
_Rows = dict[_Pair, _Row]


class _StoredReport(NamedTuple):
    """A row of the table of reports."""

    job_id: str
    workstation: str
    id: str
    offset: int
    agent: str
    state: str
    timestamp: float
    reason: str
    until: float | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Its primary key."""
        return self[:3]

    @property
    def checksum(self) -> int:
        """See `report_checksum`; the table has no results."""
        return report_checksum(self.agent, self.id, self.reason, self.until)


class ReportWriter:
    """Buffer reports; `flush` writes them.

    The buffers have plain tuples of plain values, which Python's garbage collector does not track.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reports: list[_Row] = []
        self._outcomes: _Rows = {}
        self._results: _Rows = {}
        self._answered: set[_Pair] = set()

    def add(self, report: Report, offset: int, at: float) -> None:
        """Buffer a report that counts; `at`: its timestamp."""
        job_id, workstation, agent = report.job_id, report.workstation, report.agent
        state, reason, result = report.state, report.reason, report.result
        until = report.until.timestamp() if report.until else None
        name = state.value
        self._reports.append(
            (job_id, workstation, report.id, offset, agent, name, at, reason, until)
        )
        if state is State.CONFLICT:
            return
        if state in ANSWERS:  # the outcome depends on the answers of all users
            self._answered.add((job_id, workstation))
            return
        is_final = state.final
        body = result.body() if result and is_final else b""
        place = sort_key(name, at, report_checksum(agent, report.id, reason, until, body))
        of_result = _of_result(report) if result or is_final else _NO_RESULT
        outcome = (job_id, workstation, name, *place, at, agent, reason, until, *of_result)
        _keep_greatest(self._outcomes, outcome)
        if body:
            _keep_greatest(self._results, (job_id, workstation, body, *place))

    def flush(self) -> None:
        """Write the buffered reports, their results and outcomes."""
        self._write_reports()
        put_tuples(self._connection, results, list(self._results.values()), ("body", *RANK))
        put_tuples(self._connection, outcomes, list(self._outcomes.values()), _OUTCOME)
        put_tuples(self._connection, outcomes, self._answers(), _OUTCOME)
        for buffer in (self._reports, self._outcomes, self._results, self._answered):
            buffer.clear()

    def _write_reports(self) -> None:
        """Insert the reports; of several with one id on a workstation, keep the one that counts."""
        if put_tuples(self._connection, reports, self._reports) == len(self._reports):
            return  # all were new, as nearly always
        counting: dict[tuple[str, str, str], _StoredReport] = {}
        for report in map(_StoredReport._make, self._reports):
            known = counting.get(report.key)
            if known is None or report_order(known) < report_order(report):
                counting[report.key] = report
        keys = list(counting)
        for some in chunks(keys):
            of_key = tuple_(reports.c.job_id, reports.c.workstation, reports.c.id)
            for row in self._connection.execute(select(reports).where(of_key.in_(some))).all():
                stored = _StoredReport(*row)
                if report_order(stored) >= report_order(counting[stored.key]):
                    del counting[stored.key]
        changed = tuple(column.name for column in reports.columns if not column.primary_key)
        put_tuples(self._connection, reports, list(counting.values()), changed)

    def _answers(self) -> list[_Row]:
        """Return the outcomes that follow from all stored answers of users."""
        pairs = [
            pair
            for pair in self._answered
            if pair not in self._outcomes or self._outcomes[pair][_ORDER][0] < Rank.ANSWERED
        ]
        found: dict[_Pair, list[_StoredReport]] = defaultdict(list)
        for some in chunks(pairs):
            of_jobs = tuple_(reports.c.job_id, reports.c.workstation)
            query = select(reports).where(of_jobs.in_(some), reports.c.state.in_(ANSWERS))
            for row in self._connection.execute(query):
                answer = _StoredReport(*row)
                found[answer.job_id, answer.workstation].append(answer)
        return [_outcome_of_answers(answers) for answers in found.values()]


def _keep_greatest(rows: _Rows, row: _Row) -> None:
    pair = row[:2]
    known = rows.get(pair)
    if known is None or known[_ORDER] < row[_ORDER]:
        rows[pair] = row


def _outcome_of_answers(answers: Sequence[_StoredReport]) -> _Row:
    """Return the outcome that follows from all answers about a job on a workstation."""
    last = furthest(answers)
    assert last is not None  # noqa: S101 - there is one, and none is a conflict
    # It grows with each answer, so that this outcome replaces one from fewer answers.
    time = max(answer.timestamp for answer in answers)
    place = (int(Rank.ANSWERED), time, max(answer.offset for answer in answers))
    of_report = (last.timestamp, last.agent, last.reason, last.until)
    return (last.job_id, last.workstation, last.state, *place, *of_report, *_NO_RESULT)


def _of_result(report: Report) -> _Row:
    """Return the columns of an outcome that follow from a result."""
    line = first_line(report)[:_MAX_LINE] if report.state.final else ""
    result = report.result
    if result is None:
        return (None, None, None, None, line)
    seconds = result.duration.total_seconds()
    return (result.exit_code, result.signal, seconds, result.restart_required, line)
