"""Calls for scripts that need no broker."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker import (
    DispatcherSettings,
    History,
    JobsWouldBeLost,
    NotCancellable,
    PcmError,
    ScheduleExists,
    SignedAlready,
    UnknownId,
    UnsafeFile,
    WrongKey,
    WrongSetting,
    WrongWaves,
    approve_job,
    check_cancellable,
    check_new_schedule,
    create_key_pair,
    message_schema,
    reach,
    read_report,
    read_signed,
    report_csv,
    report_html,
    sign_job,
    write_report,
    write_signed,
)
from broker.history.engine import open_history
from broker.history.history import query_history
from schemas import Command, Job, Schedule, State, workstation
from tests.unit.broker.test_history import check_in, project, report

_JOB = Job(command=Command(argv=("df",), background=True), targets=(workstation("ws-1"),))


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history with a job that has failed, and a schedule."""
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    schedule = Schedule(name="nightly", repeat="0 2 * * *", zone="UTC", job=_JOB)
    project(engine, [check_in("ws-1"), _JOB, report(_JOB, "ws-1", State.FAILED), schedule])
    with query_history(engine) as opened:
        yield opened
    engine.dispose()


def test_a_key_pair_is_created_once_and_only_if_it_is_valid(tmp_path: Path) -> None:
    private = tmp_path / "ada.key"
    for name, restriction in (
        ("a.b", {}),
        ("ada", {"targets": ["lab"]}),
        ("ada", {"variables": ["LANG"]}),
        ("ada", {"not_after": datetime(2026, 1, 1, tzinfo=UTC), "not_before": datetime.now(UTC)}),
    ):
        with pytest.raises(WrongKey):
            create_key_pair(name, private, **restriction)
    with pytest.raises(WrongKey, match="is the file of the public key"):
        create_key_pair("ada", tmp_path / "ada.pub")
    assert list(tmp_path.iterdir()) == []
    made = create_key_pair("ada", private, targets=["group:lab"], shell=False)
    assert (made.private, made.public) == (private, tmp_path / "ada.pub")
    assert list(map(str, made.key.targets)) == ["group:lab"]
    with pytest.raises(UnsafeFile, match="exists already"):
        create_key_pair("ada", private)


def test_a_job_is_signed_saved_and_approved_by_another(tmp_path: Path) -> None:
    ada, bob = (
        DispatcherSettings(signing_key=create_key_pair(name, tmp_path / name).private)
        for name in ("ada", "bob")
    )
    signed = sign_job(_JOB, ada)
    with pytest.raises(SignedAlready, match="ada has signed it already"):
        approve_job(signed, ada)
    with pytest.raises(WrongSetting, match="PCM_SIGNING_KEY: is not set"):
        sign_job(_JOB, DispatcherSettings(signing_key=None))
    file = tmp_path / "job.json"
    write_signed(file, signed, new=True)
    with pytest.raises(FileExistsError):
        write_signed(str(file), signed, new=True)
    write_signed(file, approve_job(signed, bob), new=False)
    saved = read_signed(str(file))
    assert saved is not None
    assert [signature.name for signature in saved.signatures] == ["ada", "bob"]
    assert Job.read(saved.text) == _JOB


def test_only_a_job_that_has_not_ended_is_cancellable(history: History) -> None:
    queries = history.jobs
    with pytest.raises(NotCancellable, match="has ended everywhere"):
        check_cancellable(queries, _JOB.id[:-1])
    with pytest.raises(NotCancellable, match="is not for ws-2"):
        check_cancellable(queries, _JOB.id, ["ws-2"])
    with pytest.raises(UnknownId):
        check_cancellable(queries, "no-such-job")


def test_a_queued_job_is_cancellable_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    project(engine, [check_in("ws-1"), _JOB])
    with query_history(engine) as opened:
        assert check_cancellable(opened.jobs, _JOB.id[:-1]) == _JOB.id
    engine.dispose()


def test_a_schedule_of_the_same_name_is_reported(history: History) -> None:
    check_new_schedule(history, "weekly")
    with pytest.raises(ScheduleExists, match="nightly"):
        check_new_schedule(history, "nightly")


def test_the_reach_of_a_job_has_the_sizes_of_its_waves(history: History) -> None:
    assert reach(_JOB, history.fleet).waves == ()
    assert reach(_JOB, history.fleet, "1,100%").waves == (1,)
    with pytest.raises(WrongWaves):
        reach(_JOB, history.fleet, "many")


def test_a_report_is_returned_and_written_alike(history: History, tmp_path: Path) -> None:
    found = read_report(history, _JOB.id[:-1])
    page, sheet = tmp_path / "job.html", tmp_path / "job.csv"
    write_report(found, csv=str(sheet))
    assert not page.exists()
    write_report(found, html=page, csv=sheet)
    assert page.read_text() == report_html(found)
    assert sheet.read_bytes().decode() == report_csv(found)
    assert "ws-1,failed" in report_csv(found)


def test_the_schema_has_every_message() -> None:
    definitions = message_schema()["$defs"]
    assert isinstance(definitions, dict)
    assert {"Job", "Report", "SignedJob", "TrustedKey"} <= definitions.keys()


def test_the_errors_have_one_base() -> None:
    errors = (JobsWouldBeLost, NotCancellable, ScheduleExists, SignedAlready, WrongKey)
    assert all(issubclass(error, PcmError) for error in errors)
