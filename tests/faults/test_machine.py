"""Agents that are killed with what they run, and commands that outlive their agent."""

import os
import secrets
import signal
import sqlite3
import subprocess
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.execution.processes.orphans import process_identity
from agents.execution.spool import spool_end
from broker import Dispatcher
from schemas import Job, State
from tests.support.counted import counted, ended, no_traceback
from tests.support.processes import alive, with_argument
from tests.support.waiting import LIMIT, until_there, until_true
from tests.support.workstation import Workstation


def survivor(ws: Workstation, ran: Path, script: str, **fields: Any) -> Job:
    """Return a job whose command goes on when its agent ends."""
    return counted(ws, ran, script, background=True, survives_agent=True, **fields)


def group_of(path: Path) -> int:
    """Return the process group of a command that wrote its pid to a file."""
    until_there(path)
    return int(path.read_text())


def innocent_process() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "81.6"], process_group=0)


def spools(ws: Workstation, agent: str = "service") -> list[Path]:
    folder = ws.state_dir / agent / "runs"
    return list(folder.iterdir()) if folder.exists() else []


async def test_what_a_reboot_cut_off_is_interrupted_once(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Agent and command end at once; a second start reports nothing more."""
    service = ws.start("service")
    ran, pid = tmp_path / "ran", tmp_path / "pid"
    job = counted(ws, ran, f"echo $$ > {pid}; sleep 81.2", background=True)
    await dispatcher.dispatch(job)
    group = group_of(pid)
    service.process.send_signal(signal.SIGSTOP)  # so that neither sees the other end
    os.killpg(group, signal.SIGKILL)
    service.end(signal.SIGKILL)
    ws.start("service")
    report = await ended(dispatcher, job)
    assert (report.state, report.reason) == (State.INTERRUPTED, "the agent ended while it ran")
    ws.agents[-1].end(signal.SIGKILL)
    ws.start("service")
    after = await dispatcher.dispatch(ws.job("true", background=True))
    assert (await ended(dispatcher, after)).state is State.SUCCEEDED
    assert await ended(dispatcher, job) == report
    assert ran.read_text() == "x\n"


@pytest.mark.full
async def test_what_a_reboot_cut_off_runs_again_where_its_job_wants_it(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service")
    ran, pid = tmp_path / "ran", tmp_path / "pid"
    script = f"test $(wc -l < {ran}) = 2 && exit; echo $$ > {pid}; sleep 81.3"
    job = counted(ws, ran, script, background=True, rerun_interrupted=True)
    await dispatcher.dispatch(job)
    group = group_of(pid)
    service.process.send_signal(signal.SIGSTOP)
    os.killpg(group, signal.SIGKILL)
    service.end(signal.SIGKILL)
    ws.start("service")
    assert (await ended(dispatcher, job, starts=2)).state is State.SUCCEEDED
    assert ran.read_text() == "x\nx\n"


@pytest.mark.full
async def test_a_command_that_kills_its_agent_is_started_five_times_at_the_most(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    ws.start("service").end()
    job = counted(ws, ran, "kill -9 $PPID; sleep 81.4", background=True, rerun_interrupted=True)
    await dispatcher.dispatch(job)
    for _ in range(5):
        assert ws.start("service", connected=False).process.wait(LIMIT) == -signal.SIGKILL
    service = ws.start("service")
    assert (await ended(dispatcher, job, starts=5)).state is State.INTERRUPTED
    assert ran.read_text() == "x\n" * 5
    no_traceback(service)


@pytest.mark.full
@pytest.mark.parametrize("wrong", ["start", "boot", "nonsense"])
async def test_a_process_that_has_the_pid_by_chance_is_not_harmed(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, wrong: str
) -> None:
    service = ws.start("service")
    ran, pid = tmp_path / "ran", tmp_path / "pid"
    await dispatcher.dispatch(
        job := counted(ws, ran, f"echo $$ > {pid}; sleep 81.5", background=True)
    )
    group = group_of(pid)
    service.process.send_signal(signal.SIGSTOP)
    os.killpg(group, signal.SIGKILL)
    service.end(signal.SIGKILL)
    with innocent_process() as innocent:
        boot, number, began = process_identity(innocent.pid).split()
        marked = {
            "start": f"{boot} {number} {int(began) - 1}",
            "boot": f"0{boot[1:]}-x {number} {began}",
            "nonsense": "nonsense",
        }[wrong]
        with closing(sqlite3.connect(ws.state_dir / "service" / "ledger.db")) as database:
            database.execute("UPDATE jobs SET process = ?", (marked,))
            database.commit()
        try:
            ws.start("service")
            report = await ended(dispatcher, job)
            assert innocent.poll() is None
        finally:
            innocent.kill()
    assert (report.state, report.reason) == (State.INTERRUPTED, "the agent ended while it ran")
    assert ran.read_text() == "x\n"


@pytest.mark.parametrize("how", ["kill", "drain", "twice"])
async def test_a_survivor_goes_on_and_is_waited_for(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, how: str
) -> None:
    """All output is reported, also of the time without an agent."""
    service = ws.start("service", drain="30s" if how == "twice" else "1s")
    ran, pid, said = tmp_path / "ran", tmp_path / "pid", tmp_path / "said"
    go, on = tmp_path / "go", tmp_path / "on"
    script = f"echo $$ > {pid}; echo one; until test -e {go}; do sleep 0.05; done; echo two; "
    script += f"echo > {said}; until test -e {on}; do sleep 0.05; done; echo three"
    job = await dispatcher.dispatch(survivor(ws, ran, script))
    group = group_of(pid)
    if how == "kill":
        service.end(signal.SIGKILL)
    else:
        if how == "twice":
            service.process.send_signal(signal.SIGTERM)
            service.wait_for("agent.stopping")
        assert service.end() == 0
        no_traceback(service)
    assert alive(group)
    go.touch()
    until_there(said)
    again = ws.start("service")
    again.wait_for("job.found")
    on.touch()
    report = await ended(dispatcher, job)
    assert report.state is State.INTERRUPTED
    assert report.result is not None
    assert str(report.result.stdout) == "one\ntwo\nthree\n"
    assert ran.read_text() == "x\n"
    assert not alive(group)
    assert not spools(ws)
    assert not again.events("job.started")
    assert again.end() == 0
    no_traceback(again)


@pytest.mark.full
@pytest.mark.parametrize("end", ["cancelled", "timed out"])
async def test_a_survivor_is_ended_after_the_restart(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, end: str
) -> None:
    service = ws.start("service")
    ran, pid = tmp_path / "ran", tmp_path / "pid"
    limit = timedelta(seconds=3 if end == "timed out" else 300)
    script = f"echo $$ > {pid}; trap '' TERM; echo out; sleep 81.7; sleep 81.7"
    job = await dispatcher.dispatch(survivor(ws, ran, script, timeout=limit))
    group = group_of(pid)
    service.end(signal.SIGKILL)
    ws.start("service").wait_for("job.found")
    if end == "cancelled":
        assert alive(group)
        await dispatcher.cancel(job.id, "not wanted")
    report = await ended(dispatcher, job)
    assert report.state is (State.CANCELLED if end == "cancelled" else State.TIMED_OUT)
    assert report.result is not None
    assert str(report.result.stdout) == "out\n"
    assert ran.read_text() == "x\n"
    assert not alive(group)
    assert not spools(ws)


@pytest.mark.full
async def test_a_users_survivor_goes_on_after_log_off(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service")
    interactive = ws.start("interactive", accept_offers="true")
    ran, go = tmp_path / "ran", tmp_path / "go"
    script = f"echo one; until test -e {go}; do sleep 0.05; done; echo two"
    job = await dispatcher.dispatch(counted(ws, ran, script, survives_agent=True))
    until_there(ran)
    assert interactive.end() == 0
    again = ws.start("interactive")
    again.wait_for("job.found")
    again.end(signal.SIGKILL)
    third = ws.start("interactive")
    third.wait_for("job.found")
    go.touch()
    report = await ended(dispatcher, job)
    assert (report.state, report.agent) == (State.INTERRUPTED, "interactive-ada")
    assert report.result is not None
    assert str(report.result.stdout) == "one\ntwo\n"
    assert ran.read_text() == "x\n"
    assert not spools(ws, "interactive-ada")
    no_traceback(service, interactive, third)


@pytest.mark.full
async def test_the_output_of_a_survivor_has_a_limit_on_the_disk(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Also without an agent; head and tail of the output are reported."""
    service = ws.start("service")
    ran = tmp_path / "ran"
    job = await dispatcher.dispatch(survivor(ws, ran, "echo first; exec yes"))
    spool = ws.state_dir / "service" / "runs" / job.id
    size = 20 * 1024 * 1024
    until_true(lambda: spool_end(spool, "stdout") > size)
    service.end(signal.SIGKILL)
    until_true(lambda: spool_end(spool, "stdout") > 2 * size)
    with suppress(FileNotFoundError):  # one is removed meanwhile
        assert sum(file.stat().st_size for file in spool.iterdir()) < 8 * 1024 * 1024
    ws.start("service").wait_for("job.found")
    await dispatcher.cancel(job.id, "enough")
    report = await ended(dispatcher, job)
    assert report.state is State.CANCELLED
    assert report.result is not None
    output = report.result.stdout
    assert output.head.startswith(b"first\ny\n")
    assert output.tail.endswith(b"y\n")
    assert len(output.head) + len(output.tail) == 64 * 1024
    assert output.dropped > 2 * size - 64 * 1024
    assert not spools(ws)


async def test_what_a_job_leaves_is_not_touched_by_an_agent_that_ends_or_crashes(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service")
    seconds = f"81.{secrets.randbelow(10**9)}"
    script = f"setsid sleep {seconds} & nohup sleep {seconds} &"
    job = counted(ws, tmp_path / "ran", script, background=True, leaves_processes=True)
    try:
        report = await ended(dispatcher, await dispatcher.dispatch(job))
        assert (report.state, report.reason) == (State.SUCCEEDED, "")
        service.end(signal.SIGKILL)
        again = ws.start("service")
        after = await dispatcher.dispatch(ws.job("true", background=True))
        assert (await ended(dispatcher, after)).state is State.SUCCEEDED
        assert again.end() == 0
        assert len(with_argument(seconds)) == 2
    finally:
        for pid in with_argument(seconds):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.full
@pytest.mark.parametrize("by_itself", [True, False], ids=["ended", "running"])
async def test_a_crash_touches_only_a_command_that_still_runs(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, *, by_itself: bool
) -> None:
    """What the first process left is not touched; what it was about to leave is ended."""
    service = ws.start("service")
    seconds, pid = f"81.{secrets.randbelow(10**9)}", tmp_path / "pid"
    script = f"setsid sleep {seconds} & echo $$ > {pid}; sleep 81.9"
    job = counted(ws, tmp_path / "ran", script, background=True, leaves_processes=True)
    await dispatcher.dispatch(job)
    try:
        leader = group_of(pid)
        until_true(lambda: recorded(ws))
        service.process.send_signal(signal.SIGSTOP)
        if by_itself:
            os.kill(leader, signal.SIGKILL)
        service.end(signal.SIGKILL)
        ws.start("service")
        report = await ended(dispatcher, job)
        assert report.state is State.INTERRUPTED
        assert report.reason.endswith("were stopped") != by_itself
        assert len(with_argument(seconds)) == int(by_itself)
    finally:
        for found in with_argument(seconds):
            os.kill(found, signal.SIGKILL)


def recorded(ws: Workstation) -> bool:
    """Return whether the service's ledger has the identity of a command's first process."""
    with closing(sqlite3.connect(ws.state_dir / "service" / "ledger.db")) as database:
        return bool(database.execute("SELECT 1 FROM jobs WHERE process != ''").fetchone())


@pytest.mark.full
async def test_a_survivor_keeps_its_orphans_while_its_agent_ends_others(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service", drain="1s")
    seconds, pid = f"81.{secrets.randbelow(10**9)}", tmp_path / "pid"
    script = f"setsid -f sleep {seconds}; echo $$ > {pid}; sleep 81.9; sleep 81.9"
    job = await dispatcher.dispatch(survivor(ws, tmp_path / "ran", script))
    other = ws.job(
        f"trap '' TERM; setsid -f true; echo > {tmp_path / 'other'}; sleep 81.8; sleep 81.8",
        shell=True,
        background=True,
    )
    await dispatcher.dispatch(other)
    until_there(pid)
    until_there(tmp_path / "other")
    assert service.end() == 0
    assert with_argument(seconds)
    ws.start("service").wait_for("job.found")
    assert (await ended(dispatcher, other)).state is State.INTERRUPTED
    assert with_argument(seconds)
    await dispatcher.cancel(job.id, "enough")
    assert (await ended(dispatcher, job)).state is State.CANCELLED
    assert not with_argument(seconds)
