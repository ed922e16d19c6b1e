"""Jobs are stored before `dispatch` returns, reach each target once, or fail by name."""

from datetime import UTC, datetime, timedelta

import pytest

from broker import Dispatcher, DispatcherSettings, Progress, Unreachable
from schemas import Command, Job, Report, State, workstation


async def test_no_broker_is_an_error_after_the_patience() -> None:
    settings = DispatcherSettings(
        amqp_url=("amqp://nobody:secret@127.0.0.1:1/",), patience=timedelta(seconds=1)
    )
    notices: list[str] = []
    with pytest.raises(Unreachable) as caught:
        async with Dispatcher.connect(settings, notices.append):
            pass
    assert len(notices) == 1
    assert "secret" not in str(caught.value) + notices[0]


async def test_a_report_twice_or_late_changes_nothing() -> None:
    """Q152229: a final state is final."""
    job = Job(command=Command(argv=("true",)), targets=(workstation("w"),))

    def report(state: State, seconds: int) -> Report:
        at = datetime(2026, 11, 30, 12, 0, seconds, tzinfo=UTC)
        return Report(job_id=job.id, workstation="w", agent="service", state=state, at=at)

    expired, received = report(State.EXPIRED, 1), report(State.RECEIVED, 2)
    progress = Progress(job.id)
    progress.add(job)
    assert progress.waiting == {"w"}
    assert progress.add(expired)
    assert not progress.add(expired)
    assert progress.add(received)
    assert progress.add(report(State.CANCELLED, 3))
    assert progress.ended
    assert progress.workstations["w"] == expired
    assert repr(progress) == f"<Progress {job.id} w=expired>"
