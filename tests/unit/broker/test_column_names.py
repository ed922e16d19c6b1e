"""A table and its JSON call a thing by one name: the column's, with underscores for spaces."""

from collections import Counter
from collections.abc import Collection
from dataclasses import fields

import pytest

from broker.cli.table import Column
from broker.history.queries.rows import Event, FailureGroup, JobRow, OutcomeRow
from broker.results import jobs, show
from broker.results.query_session import job_fields, outcome_fields
from broker.results.report import csv_table
from broker.schedules import views as schedule_views
from broker.schedules.queries import next_occurrences
from schemas import everyone
from tests.support.schedules import make

JOB = JobRow(
    id="job", name="name", context="foreground", requirement="optional", sender="ada",
    targets="all", command="true", created_at=0, offer_at=None, mandatory_at=None,
    expires_at=None, cancelled_at=None, cancel_offset=None, cancelled_by="", cancel_reason="",
    rerun_of=None, rollout=None, schedule=None, counts=Counter(),
)  # fmt: skip
OUTCOME = OutcomeRow(
    workstation="ws-1", state="queued", at=None, agent="", reason="", until=None, exit_code=None,
    signal=None, duration=None, restart_required=None, line="",
)  # fmt: skip
SCHEDULE = make(everyone)
LISTED = {*schedule_views.added(SCHEDULE)[0], "last", "counts"}  # counts: those of the last
OCCURRENCE = schedule_views.occurrence_fields(next_occurrences(SCHEDULE)[0])


def names(of: type) -> set[str]:
    return {field.name for field in fields(of)}


@pytest.mark.parametrize(
    ("columns", "json"),
    [
        (jobs.COLUMNS, job_fields(JOB)),
        (show.OUTCOME_COLUMNS, outcome_fields(OUTCOME)),
        (show.REPORT_COLUMNS, names(Event)),
        (show.FAILURE_COLUMNS, names(FailureGroup)),
        (schedule_views.LIST_COLUMNS, LISTED),
        (schedule_views.NEXT_COLUMNS, OCCURRENCE),
    ],
)
def test_a_column_has_the_name_of_its_field(
    columns: Collection[Column], json: Collection[str]
) -> None:
    assert {column.name.replace(" ", "_") for column in columns} <= set(json)


def test_a_csv_has_the_names_of_the_fields() -> None:
    assert set(csv_table.COLUMNS) <= set(outcome_fields(OUTCOME))


def test_a_job_has_a_context_and_a_requirement() -> None:
    found = {column.name for column in jobs.COLUMNS}
    assert {"context", "requirement"} <= found
    assert "kind" not in found
