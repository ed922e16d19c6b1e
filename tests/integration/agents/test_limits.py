"""Files and processes that are used up: a start waits, all else goes on, nothing runs twice."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.counted import counted, ended, no_traceback, now
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT, Gate, until, until_there
from tests.support.workstation import PCM_AGENT, AgentProcess, Program, Workstation

# A limit of processes counts all of a user's: no other process of the tests has this one.
OTHER_USER = 60_000 + os.getpid() % 4_000
# Somebody who may read all, so that the program can be anywhere, and nothing else.
AS_OTHER: Program = (
    "setpriv",
    f"--reuid={OTHER_USER}",
    f"--regid={OTHER_USER}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)


@contextmanager
def limited(agent: AgentProcess, kind: str, most: int, user: Program = ()) -> Iterator[None]:
    """Let an agent have only so much of something; `user` makes who sets it the agent's user."""
    words = (*user, "prlimit", f"--pid={agent.process.pid}")
    find = (*words, f"--{kind}", "--noheadings", "--raw", "--output=SOFT")
    before = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    set_limit(agent, kind, str(most), user)
    try:
        yield
    finally:
        set_limit(agent, kind, before, user)


def set_limit(agent: AgentProcess, kind: str, most: str, user: Program = ()) -> None:
    words = (*user, "prlimit", f"--pid={agent.process.pid}", f"--{kind}={most}:")
    subprocess.run(words, check=True)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def threads_of(agent: AgentProcess) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/task").iterdir()))


def highest_file(agent: AgentProcess) -> int:
    return max(int(file.name) for file in Path(f"/proc/{agent.process.pid}/fd").iterdir())


@pytest.mark.parametrize("room", [0, 4, 8])
async def test_a_start_waits_until_there_are_files(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, room: int
) -> None:
    """Intake, ledger and reports go on meanwhile."""
    service = ws.start("service")
    ran = tmp_path / "ran"
    job = counted(ws, ran, background=True)
    with limited(service, "nofile", highest_file(service) + 1 + room):
        await dispatcher.dispatch(job)
        if room < 8:  # a start needs more than so many
            service.wait_for("job.held_back")
            assert not ran.exists()
        other = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(days=1)))
        await dispatcher.cancel(other.id)
        assert (await ended(dispatcher, other, starts=0)).state is State.CANCELLED
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    no_traceback(service)


@pytest.mark.parametrize("survives", [False, True])
async def test_a_command_that_ends_while_files_are_used_up_does_not_run_again(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, *, survives: bool
) -> None:
    """Also one that leaves processes behind, which are to be looked for."""
    service = ws.start("service", concurrency="1")
    ran, pid, gate = tmp_path / "ran", tmp_path / "pid", Gate(tmp_path / "go")
    script = f"echo $$ > {pid}; {gate.script}; echo done; sleep 81.8 &"
    job = counted(ws, ran, script, background=True, survives_agent=survives)
    await dispatcher.dispatch(job)
    until_there(pid)
    with limited(service, "nofile", 5):
        gate.open()
        await until(lambda: has_ended(int(pid.read_text())))
    report = await ended(dispatcher, job)
    assert report.state is State.SUCCEEDED
    assert report.result is not None
    assert str(report.result.stdout) == "done\n"
    assert ran.read_text() == "x\n"
    after = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, after)).state is State.SUCCEEDED
    no_traceback(service)


@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_a_users_job_waits_until_there_are_files(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, kind: str
) -> None:
    """A claim that cannot be looked at now is not one that cannot be read."""
    clock = Clock(ws)
    agent = clock.start(kind, missing_after=LOOK_EVERY)
    ran = tmp_path / "ran"
    job = counted(ws, ran, mandatory_at=now(hours=1))
    await dispatcher.dispatch(job)
    agent.wait_for("job.received" if kind == "service" else "job.offered")
    with limited(agent, "nofile", 5):
        clock.set(2 * 3600)
        agent.wait_for("claim.failed")
        assert not ran.exists()
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    no_traceback(agent)


@pytest.mark.full
async def test_a_broker_that_is_lost_while_files_are_used_up_is_found_again(
    ws: Workstation, node: Broker, dispatcher: Dispatcher
) -> None:
    service = ws.start("service")
    with limited(service, "nofile", 5):
        await asyncio.to_thread(node.close_connections)
        service.wait_for("broker.lost", 2)
    service.wait_for("broker.connected", 2)
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    no_traceback(service)


async def test_an_agent_whose_starter_ignored_the_end_of_children_does_not(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    program = ("sh", "-c", 'trap \'\' CHLD; exec "$0" "$@"', *PCM_AGENT)
    ws.start("service", program=program)
    job = await dispatcher.dispatch(counted(ws, tmp_path / "ran", "exit 3", background=True))
    assert (await ended(dispatcher, job)).reason == "exit code 3"
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.fixture
def of_another_user(ws: Workstation) -> Iterator[Workstation]:
    """A workstation whose agents run as somebody whom limits bind, which they do not root."""
    folder = Path(tempfile.mkdtemp(prefix="pcm-test-"))
    ws.state_dir = folder / "state"
    ws.environment |= {"HOME": str(folder), "PCM_STATE_DIR": str(ws.state_dir)}
    if os.geteuid() == 0:
        os.chown(folder, OTHER_USER, OTHER_USER)
        if (
            not shutil.which("setpriv")
            or subprocess.run(
                [*AS_OTHER, *PCM_AGENT, "--help"], stdout=subprocess.DEVNULL, check=False
            ).returncode
        ):
            shutil.rmtree(folder)
            pytest.skip("no program can be run as another user here")
    try:
        yield ws
    finally:
        ws.stop()
        shutil.rmtree(folder)


@pytest.mark.parametrize("most", [1, 5])
def test_an_agent_without_room_for_its_threads_does_not_start(
    of_another_user: Workstation, most: int
) -> None:
    words = ("prlimit", f"--nproc={most}:", *PCM_AGENT, "service")
    if os.geteuid() != 0:
        pytest.skip("this user has other processes")
    found = subprocess.run(
        [*AS_OTHER, *words],
        env=of_another_user.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert "cannot start" in line
    assert "PCM_CONCURRENCY" in line


async def test_what_was_left_running_is_looked_for_once_there_is_a_thread_for_that(
    of_another_user: Workstation, dispatcher: Dispatcher
) -> None:
    ws = of_another_user
    if os.geteuid() != 0:
        pytest.skip("this user has other processes")
    service = ws.start("service", program=(*AS_OTHER, *PCM_AGENT))
    threads = threads_of(service)
    ran, pid = ws.state_dir.parent / "ran", ws.state_dir.parent / "pid"
    job = counted(ws, ran, f"echo $$ > {pid}; exec sleep 81.9", background=True)
    await dispatcher.dispatch(job)
    until_there(pid)
    service.end(signal.SIGKILL)
    # Its command counts, too.
    again = ws.start(
        "service",
        connected=False,
        program=(*AS_OTHER, "prlimit", f"--nproc={threads + 1}:", *PCM_AGENT),
    )
    again.wait_for("job.held_back")
    again.wait_for("broker.connected")
    set_limit(again, "nproc", "64", AS_OTHER)
    report = await ended(dispatcher, job)
    assert report.state is State.INTERRUPTED
    assert "its remaining processes were stopped" in report.reason
    assert ran.read_text() == "x\n"
    no_traceback(again)


async def test_a_start_waits_until_there_are_processes(
    of_another_user: Workstation, dispatcher: Dispatcher
) -> None:
    """Intake, ledger and reports go on meanwhile."""
    ws = of_another_user
    user = () if os.geteuid() else AS_OTHER
    service = ws.start("service", program=(*user, *PCM_AGENT))
    ran = ws.state_dir.parent / "ran"
    job = counted(ws, ran, background=True)
    with limited(service, "nproc", 1, user):
        await dispatcher.dispatch(job)
        service.wait_for("job.held_back")
        other = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(days=1)))
        await dispatcher.cancel(other.id)
        assert (await ended(dispatcher, other, starts=0)).state is State.CANCELLED
        assert not ran.exists()
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED
    assert ran.read_text() == "x\n"
    no_traceback(service)
