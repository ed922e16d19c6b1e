"""Write reports, and the outcomes and results that follow from them.

The tables depend on the set of reports alone (`schemas.reports.report.furthest`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import Connection, select, tuple_

from broker.history.chunks import chunks
from broker.history.projection.upserts import RANK, put
from broker.history.schema import outcomes, reports, results
from schemas import Report, Result, State
from schemas.reports.report import (
    ANSWERS,
    Rank,
    first_line,
    furthest,
    order,
    report_checksum,
)

_OUTCOME = tuple(
    column.name for column in outcomes.columns if column.name not in outcomes.primary_key.columns
)
_RESULT = TypeAdapter(Result)
_MAX_LINE = 200
_NO_RESULT: dict[str, object] = {
    **dict.fromkeys(("exit_code", "signal", "duration", "restart_required", "already_present")),
    "line": "",
}

Row = dict[str, Any]
_Pair = tuple[str, str]  # a job, and a workstation


class _Ordered(NamedTuple):
    """A report with its row, in the order in which reports count."""

    order: tuple[int, float, int]
    row: Row
    report: Report


class _StoredReport(NamedTuple):
    """A row of the table of reports."""

    job_id: str
    workstation: str
    id: str
    agent: str
    state: str
    timestamp: float
    reason: str
    until: float | None
    offset: int

    @property
    def key(self) -> tuple[str, str, str]:
        """Its primary key."""
        return (self.job_id, self.workstation, self.id)

    @property
    def checksum(self) -> int:
        """See `report_checksum`; the table has no results."""
        return report_checksum(self.agent, self.id, self.reason, self.until)

    @classmethod
    def of(cls, row: Row) -> "_StoredReport":
        """Return a row that is to be inserted."""
        return cls(*(row[name] for name in _REPORT))


_REPORT = (
    *("job_id", "workstation", "id", "agent", "state", "at"),
    *("reason", "until", "offset"),
)
_REPORT_COLUMNS = tuple(reports.c[name] for name in _REPORT)


class ReportWriter:
    """Buffer reports; `flush` writes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Row] = []
        self._best: dict[_Pair, _Ordered] = {}
        self._last: dict[_Pair, _Ordered] = {}
        """The reports whose results are kept."""
        self._answered: set[_Pair] = set()

    def add(self, report: Report, offset: int, at: float) -> None:
        """Buffer a report that counts; `at`: its timestamp."""
        key = (report.job_id, report.workstation)
        state = report.state
        row = {
            "job_id": report.job_id,
            "workstation": report.workstation,
            "agent": report.agent,
            "state": state.value,
            "at": at,
            "reason": report.reason,
            "until": report.until.timestamp() if report.until else None,
        }
        self._rows.append({**row, "id": report.id, "offset": offset})
        if state is State.CONFLICT:
            return
        if state in ANSWERS:  # the outcome depends on the answers of all users
            self._answered.add(key)
            return
        found = _Ordered(order(report), row, report)
        _keep_greatest(self._best, key, found)
        if report.result is not None and state.final:
            _keep_greatest(self._last, key, found)

    def flush(self) -> None:
        """Write the buffered reports, their results and outcomes."""
        self._write_reports()
        put(self._connection, results, list(map(_result, self._last.values())), ("body", *RANK))
        put(self._connection, outcomes, list(map(_outcome, self._best.values())), _OUTCOME)
        put(self._connection, outcomes, self._answers(), _OUTCOME)
        for buffer in (self._rows, self._best, self._last, self._answered):
            buffer.clear()

    def _write_reports(self) -> None:
        """Insert the reports; of several with one id on a workstation, keep the one that counts."""
        rows = self._rows
        if put(self._connection, reports, rows) == len(rows):
            return  # all were new, as nearly always
        counting: dict[tuple[str, str, str], _StoredReport] = {}
        for report in map(_StoredReport.of, rows):
            known = counting.get(report.key)
            if known is None or order(known) < order(report):
                counting[report.key] = report
        keys = list(counting)
        for some in chunks(keys):
            of_key = tuple_(reports.c.job_id, reports.c.workstation, reports.c.id)
            query = select(*_REPORT_COLUMNS).where(of_key.in_(some))
            for row in self._connection.execute(query).all():
                stored = _StoredReport(*row)
                if order(stored) >= order(counting[stored.key]):
                    del counting[stored.key]
        changed = [dict(zip(_REPORT, report, strict=True)) for report in counting.values()]
        put(self._connection, reports, changed, _REPORT[3:])

    def _answers(self) -> list[Row]:
        """Return the outcomes that follow from all stored answers of users."""
        keys = [
            key
            for key in self._answered
            if key not in self._best or self._best[key].order[0] < Rank.ANSWERED
        ]
        found: dict[tuple[str, str], list[_StoredReport]] = defaultdict(list)
        for some in chunks(keys):
            of_jobs = tuple_(reports.c.job_id, reports.c.workstation)
            query = select(*_REPORT_COLUMNS).where(of_jobs.in_(some), reports.c.state.in_(ANSWERS))
            for row in self._connection.execute(query):
                answer = _StoredReport(*row)
                found[answer.job_id, answer.workstation].append(answer)
        return [_outcome_of_answers(answers) for answers in found.values()]


def _keep_greatest(known: dict[_Pair, _Ordered], key: _Pair, found: _Ordered) -> None:
    best = known.get(key)
    if best is None or best.order < found.order:
        known[key] = found


def _outcome(found: _Ordered) -> Row:
    """Return the outcome that a report gives."""
    report = found.report
    of_result = _result_columns(report) if report.result or report.state.final else _NO_RESULT
    return {**found.row, **_rank(found.order), **of_result}


def _result(found: _Ordered) -> Row:
    """Return the row of a report's result."""
    report = found.report
    assert report.result is not None  # noqa: S101 - only these are kept
    pair = {"job_id": report.job_id, "workstation": report.workstation}
    return {**pair, **_rank(found.order), "body": _body(report.result)}


def _rank(place: tuple[int, float, int]) -> Row:
    return dict(zip(RANK, place, strict=True))


def _outcome_of_answers(answers: Sequence[_StoredReport]) -> Row:
    """Return the outcome that follows from all answers about a job on a workstation."""
    last = furthest(answers)
    assert last is not None  # noqa: S101 - there is one, and none is a conflict
    return {
        "job_id": last.job_id,
        "workstation": last.workstation,
        "agent": last.agent,
        "state": last.state,
        "at": last.timestamp,
        "reason": last.reason,
        "until": last.until,
        # It grows with each answer, so that this outcome replaces one from fewer answers.
        "rank": Rank.ANSWERED,
        "rank_at": max(answer.timestamp for answer in answers),
        "rank_offset": max(answer.offset for answer in answers),
        **_NO_RESULT,
    }


def _result_columns(report: Report) -> Row:
    result = report.result
    return {
        "exit_code": result.exit_code if result else None,
        "signal": result.signal if result else None,
        "duration": result.duration.total_seconds() if result else None,
        "restart_required": result.restart_required if result else None,
        "already_present": result.already_present if result else None,
        "line": first_line(report)[:_MAX_LINE] if report.state.final else "",
    }


def _body(result: Result) -> bytes:
    # Excluded by name: comparing them with defaults takes longer than everything else.
    silent = {name for name in ("stdout", "stderr") if getattr(result, name).silent}
    return _RESULT.dump_json(result, exclude=silent, exclude_defaults=True)
