"""The agent is killed between any two steps: nothing is lost, nothing is started twice."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.waiting import until
from tests.support.workstation import Program, Workstation, agents_of, final, follow, sabotaged

UNBEGUN = (State.SUCCEEDED, "x\n")
CUT_OFF = (State.INTERRUPTED, "")
BEFORE_START = {"received", "accepted", "acknowledged"}

BACKGROUND = [
    ("received", UNBEGUN),
    ("accepted", UNBEGUN),
    ("acknowledged", UNBEGUN),
    # On record is the start, whether or not the command was reached: once at most.
    ("start recorded", CUT_OFF),
    ("ended", (State.INTERRUPTED, "x\n")),
    ("end recorded", (State.SUCCEEDED, "x\n")),
    ("concluded", (State.SUCCEEDED, "x\n")),
    ("sending succeeded", (State.SUCCEEDED, "x\n")),
    ("sent succeeded", (State.SUCCEEDED, "x\n")),
]
FOREGROUND = [
    ("claiming", UNBEGUN),
    # Decided for good is what the claim says, before the ledger says so, too.
    ("claimed", CUT_OFF),
    ("start recorded", CUT_OFF),
    ("ended", (State.INTERRUPTED, "x\n")),
    ("end recorded", (State.SUCCEEDED, "x\n")),
    ("concluded", (State.SUCCEEDED, "x\n")),
]


def killed_at(point: str) -> Program:
    """Return an agent that kills itself at a point; `sent succeeded`: of messages of that key."""
    step, _, text = point.partition(" ")
    return sabotaged(step, text) if step in ("sending", "sent") else sabotaged(point)


@pytest.mark.full
@pytest.mark.parametrize(("point", "expected"), BACKGROUND)
async def test_a_background_job_survives_its_agent(
    ws: Workstation,
    dispatcher: Dispatcher,
    tmp_path: Path,
    point: str,
    expected: tuple[State, str],
) -> None:
    ran = tmp_path / "ran"
    ran.touch()
    fields = {"respects_windows": True, "timeout": timedelta(minutes=1)}
    job = ws.job(f"echo x >> {ran}", shell=True, background=True, **fields)
    # What is to be killed before the start must not start first, however busy the machine is.
    closed = f"{datetime.now().astimezone() + timedelta(days=3):%a} 02:00-06:00"
    windows = closed if point in BEFORE_START else ""
    service = ws.start("service", program=killed_at(point), windows=windows)
    await dispatcher.dispatch(job)
    assert service.end(0) == -9
    ws.start("service")
    ended = final(await follow(dispatcher, job))
    assert (ended.state, ran.read_text()) == expected
    other = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, other)).state is State.SUCCEEDED
    assert ran.read_text() == expected[1]


@pytest.mark.parametrize(("point", "expected"), FOREGROUND)
async def test_a_users_job_survives_the_agent(
    ws: Workstation,
    dispatcher: Dispatcher,
    tmp_path: Path,
    point: str,
    expected: tuple[State, str],
) -> None:
    """There is at most one start and one final report, whichever agent takes over.

    The user's agent comes back before the service takes it to be gone, however busy the machine is.
    """
    ran = tmp_path / "ran"
    ran.touch()
    job = ws.job(f"echo x >> {ran}", shell=True, mandatory_at=datetime.now(UTC))
    ws.start("service", missing_after="1h", takeover_grace="1h")
    interactive = ws.start("interactive", accept_offers="true", program=killed_at(point))
    await dispatcher.dispatch(job)
    assert interactive.end(0) == -9
    ws.start("interactive", accept_offers="true")
    reports = await follow(dispatcher, job)
    assert (final(reports).state, ran.read_text()) == expected
    assert len(agents_of(reports, State.STARTED)) <= 1


async def test_a_running_command_is_ended_and_reported(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """The process exists, and nothing of it is on record but the start."""
    ran = tmp_path / "ran"
    service = ws.start("service", program=sabotaged("started"))
    job = await dispatcher.dispatch(
        ws.job(f"echo x >> {ran}; sleep 88.7654", shell=True, background=True)
    )
    assert service.end(0) == -9
    ws.start("service")
    assert final(await follow(dispatcher, job)).state is State.INTERRUPTED
    assert not ran.exists() or ran.read_text() == "x\n"


async def test_the_service_speaks_for_a_user_who_does_not_come_back(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Each job has a final report; the user's agent adds none when it returns."""
    ran = tmp_path / "ran"
    service = ws.start("service", missing_after="1s")
    interactive = ws.start("interactive", accept_offers="true")
    job = await dispatcher.dispatch(ws.job(f"echo x >> {ran}; sleep 87.6543", shell=True))
    interactive.wait_for("job.started")
    await until(lambda: ran.exists() and ran.read_text())
    interactive.end(9)
    ended = final(await follow(dispatcher, job))
    assert (ended.state, ended.agent) == (State.INTERRUPTED, "service")
    assert "interactive-ada ended while it ran" in ended.reason
    service.wait_for("job.ended")
    back = ws.start("interactive", accept_offers="true")
    other = await dispatcher.dispatch(ws.job("true"))
    assert final(await follow(dispatcher, other)).agent == "interactive-ada"
    assert not [event for event in back.events("job.ended") if event["job"] == job.id]
    reports = await follow(dispatcher, job)
    assert [report.agent for report in reports if report.state.final] == ["service"]
    assert ran.read_text() == "x\n"


async def test_a_job_that_says_so_is_started_again(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Q164887: a job that asks for it is started again; it has one final report."""
    ran = tmp_path / "ran"
    script = f"echo x >> {ran}; [ $(wc -l < {ran}) = 2 ] || sleep 86.5432"
    ws.start("service", missing_after="1s")
    for kind, background in (("service", True), ("interactive", False)):
        ran.write_text("")
        agent = ws.agents[0] if background else ws.start(kind, accept_offers="true")
        job = await dispatcher.dispatch(
            ws.job(script, shell=True, background=background, rerun_interrupted=True)
        )
        await until(lambda: ran.read_text() == "x\n")  # on record is the start before it begins
        agent.end(9 if background else 15)
        if not background:
            other = await dispatcher.dispatch(ws.job("sleep", "3", background=True))
            await follow(dispatcher, other)  # longer than the service bears a missing agent
        ws.start(kind, accept_offers="true", missing_after="1s")
        reports = await follow(dispatcher, job)
        assert final(reports).state is State.SUCCEEDED
        starts = [report for report in reports if report.state is State.STARTED]
        assert [bool(report.reason) for report in starts] == [False, True]
        assert ran.read_text() == "x\nx\n"
