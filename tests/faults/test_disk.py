"""A full or read-only disk: nothing is lost, nothing runs twice, and the error is logged."""

import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.clock import LOOK_EVERY, PROGRAM, Clock
from tests.support.counted import counted, ended, no_traceback, now
from tests.support.disk import Disk, NoDisk
from tests.support.queues import until_held
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT, Gate, until_there, until_true
from tests.support.workstation import PCM_AGENT, Workstation

HOUR = 3600.0


@pytest.fixture
def disk(ws: Workstation) -> Iterator[Disk]:
    """A small disk at the workstation's state directory."""
    try:
        with Disk(ws.state_dir) as made:
            yield made
            ws.stop()
    except NoDisk as error:
        pytest.skip(str(error))


def process_on_record(disk: Disk) -> str:
    """Return the process that the ledger records for the service's only job."""
    code = (
        "import sys; from pathlib import Path; from agents.store import ledger;"
        "print(ledger.read_ledger(Path(sys.argv[1]))[0].process, end='')"
    )
    program = disk.seen_by((sys.executable, "-c", code, disk.folder / "service" / "ledger.db"))
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout


def refused(ws: Workstation, disk: Disk, *words: str) -> str:
    """Return the one line of an agent that does not start."""
    found = subprocess.run(
        [*disk.program, *(words or ("service",))],
        env=ws.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert found.returncode == 1, found.stderr
    (line,) = found.stderr.splitlines()
    return line


@pytest.mark.full
async def test_what_a_full_disk_cannot_take_is_not_acknowledged(
    ws: Workstation, node: Broker, disk: Disk, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service", program=disk.program)
    ran = tmp_path / "ran"
    disk.fill()
    job = await dispatcher.dispatch(counted(ws, ran, background=True))
    service.wait_for("ledger.failing")
    await until_held(node, 1)
    assert not service.events("job.received")
    assert not ran.exists()
    disk.clear()
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    (failing,) = service.events("ledger.failing")
    assert "full" in failing["reason"]
    assert len(service.events("ledger.recovered")) == 1
    await until_held(node, 0)
    assert service.end() == 0
    no_traceback(service)


@pytest.mark.full
async def test_the_end_of_a_command_waits_for_room(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service", program=disk.program)
    ran, gate = tmp_path / "ran", Gate(tmp_path / "go")
    script = f"{gate.script}; echo done"
    job = await dispatcher.dispatch(counted(ws, ran, script, background=True))
    until_there(ran)
    until_true(lambda: process_on_record(disk))
    disk.fill()
    gate.open()
    service.wait_for("ledger.failing")
    disk.clear()
    report = await ended(dispatcher, job)
    assert report.state is State.SUCCEEDED
    assert report.result is not None
    assert str(report.result.stdout) == "done\n"
    assert ran.read_text() == "x\n"
    assert service.end() == 0
    no_traceback(service)


@pytest.mark.full
async def test_a_command_that_ended_on_a_full_disk_does_not_run_again(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Its end was not recorded: it is interrupted, also after kill -9."""
    service = ws.start("service", program=disk.program)
    ran, gate = tmp_path / "ran", Gate(tmp_path / "go")
    job = await dispatcher.dispatch(counted(ws, ran, gate.script, background=True))
    until_there(ran)
    disk.fill()
    gate.open()
    service.wait_for("job.ended")
    service.end(signal.SIGKILL)
    disk.clear()
    ws.start("service", program=disk.program)
    assert (await ended(dispatcher, job)).state is State.INTERRUPTED
    assert ran.read_text() == "x\n"


@pytest.mark.full
@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_a_claim_waits_for_room(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher, tmp_path: Path, kind: str
) -> None:
    clock = Clock(ws)
    agent = clock.start(kind, disk.seen_by(PROGRAM), missing_after=LOOK_EVERY)
    ran = tmp_path / "ran"
    job = await dispatcher.dispatch(counted(ws, ran, mandatory_at=now(hours=1)))
    agent.wait_for("job.received" if kind == "service" else "job.offered")
    disk.fill()
    clock.set(2 * HOUR)
    agent.wait_for("claim.failed")
    assert not ran.exists()
    disk.clear()
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    assert agent.end() == 0
    no_traceback(agent)


@pytest.mark.full
async def test_an_agent_can_be_stopped_on_a_full_disk(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Jobs that were waiting or about to start run after the next start."""
    clock = Clock(ws)
    service = clock.start("service", disk.seen_by(PROGRAM), missing_after=LOOK_EVERY)
    accepted = counted(ws, tmp_path / "one", mandatory_at=now(hours=1))
    await dispatcher.dispatch(accepted)
    service.wait_for("job.received")
    disk.fill()
    coming = await dispatcher.dispatch(counted(ws, tmp_path / "two", background=True))
    service.wait_for("ledger.failing")
    clock.set(2 * HOUR)
    service.wait_for("claim.failed")
    assert service.end() == 0
    no_traceback(service)
    assert not service.events("job.started")
    disk.clear()
    clock.start("service", disk.seen_by(PROGRAM))
    for job, ran in ((accepted, tmp_path / "one"), (coming, tmp_path / "two")):
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
        assert ran.read_text() == "x\n"


@pytest.mark.full
async def test_an_agent_does_not_start_on_a_full_disk(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher
) -> None:
    """Whether it was there before or not; and it starts as ever once there is room."""
    for kind in ("service", "interactive"):
        disk.fill()
        assert re.match("pcm-agent: PCM_STATE_DIR: .*(full|space)", refused(ws, disk, kind))
        disk.clear()
        agent = ws.start(kind, program=disk.program)
        agent.end()
        disk.fill()
        assert re.match("pcm-agent: PCM_STATE_DIR: .*(full|space)", refused(ws, disk, kind))
        disk.clear()
        again = ws.start(kind, program=disk.program)
        assert not agent.events("ledger.damaged") + again.events("ledger.damaged")
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED


async def test_a_full_disk_under_the_log_stops_no_job(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service").end()  # its queue is there from now on
    full = ("sh", "-c", 'exec "$0" "$@" 2> /dev/full', *PCM_AGENT)
    service = ws.start("service", connected=False, program=full)
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert service.end() == 0


@pytest.mark.full
async def test_an_agent_does_not_start_where_it_may_not_write(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher
) -> None:
    for _ in range(2):
        disk.mount("-o", "remount,ro", disk.folder)
        line = refused(ws, disk)
        assert re.match("pcm-agent: PCM_STATE_DIR: .*(Read-only|readonly)", line)
        disk.mount("-o", "remount,rw", disk.folder)
        ws.start("service", program=disk.program).end()
    ws.start("service", program=disk.program)
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED


@pytest.mark.full
async def test_claims_in_a_folder_that_became_read_only_wait(
    ws: Workstation, disk: Disk, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service", program=disk.program)
    claims, ran = disk.folder / "claims", tmp_path / "ran"
    disk.mount("--bind", claims, claims)
    disk.mount("-o", "remount,bind,ro", claims)
    job = await dispatcher.dispatch(counted(ws, ran, mandatory_at=now()))
    service.wait_for("claim.failed")
    needs_none = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, needs_none)).state is State.SUCCEEDED
    assert not ran.exists()
    disk.mount("-o", "remount,bind,rw", claims)
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    no_traceback(service)


@pytest.mark.full
async def test_a_ledger_that_cannot_be_written_is_tried_again(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Files may not grow: for SQLite this is an error of the disk."""
    service = ws.start("service")
    log = ws.state_dir / "service" / "ledger.db-wal"
    assert log.stat().st_size > service.log.stat().st_size + 10_000
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, unlimited))
    ran = tmp_path / "ran"
    job = await dispatcher.dispatch(counted(ws, ran, background=True))
    service.wait_for("ledger.failing")
    assert not ran.exists()
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    assert len(service.events("ledger.failing")) == 1
    no_traceback(service)
