"""A command runs as the user whom its job names, with that user's rights and no others."""

import asyncio
import gc
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agents.execution.command_run import CommandRun, Outcome
from agents.execution.environment import command_environment
from agents.execution.processes.orphans import find, process_identity
from agents.execution.processes.process_tree import job_mark
from agents.execution.spawn import CannotStart
from broker import Dispatcher
from schemas import Command, State
from schemas.orders.job import new_job_id
from tests.support import other
from tests.support.counted import counted, ended, no_traceback
from tests.support.processes import alive, with_argument
from tests.support.waiting import until_there, until_true
from tests.support.workstation import PCM_AGENT, Program, Workstation

USER = pwd.getpwuid(other.UID).pw_name


def run(*argv: str, run_as: str = USER, **fields: Any) -> Outcome:
    command = Command(argv=argv, background=True, run_as=run_as, **fields)
    job_id = new_job_id()  # its processes are known by it
    made = CommandRun(
        command, job_id, "ws-1", 65536, 0.5, command_environment(session=False), Path("no-spool")
    )
    gc.collect()  # what earlier tests left open is closed now
    before = {file.name for file in Path("/proc/self/fd").iterdir()}
    try:
        return asyncio.run(made.complete())
    finally:
        assert {file.name for file in Path("/proc/self/fd").iterdir()} <= before


def said(ended: Outcome) -> str:
    assert ended.state is State.SUCCEEDED, ended
    assert ended.result is not None
    return str(ended.result.stdout) + str(ended.result.stderr)


def test_a_foreground_command_runs_as_its_user() -> None:
    with pytest.raises(ValidationError, match="run_as: a foreground command runs as its user"):
        Command(argv=("true",), run_as=USER)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a:b", "../x", "a\n", "x" * 300])
def test_what_is_no_users_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="run_as"):
        Command(argv=("true",), background=True, run_as=name)


@other.needs_root
def test_it_has_that_users_ids_and_no_others() -> None:
    script = "grep -E '^(Uid|Gid|Groups|Cap(Prm|Eff|Amb)|SigIgn|SigBlk)' /proc/self/status"
    rows = dict(line.split(":") for line in said(run(script, shell=True)).splitlines())
    account = pwd.getpwnam(USER)
    assert set(rows["Uid"].split()) == {str(account.pw_uid)}
    assert set(rows["Gid"].split()) == {str(account.pw_gid)}
    groups = set(map(str, os.getgrouplist(USER, account.pw_gid)))
    assert set(rows["Groups"].split()) == groups
    for name in ("CapPrm", "CapEff", "CapAmb", "SigBlk"):
        assert int(rows[name], 16) == 0
    # 32 and 33 are the C library's own, which it lets no program change: see signal(7).
    assert int(rows["SigIgn"], 16) & ~(0b11 << 31) == 0


@other.needs_root
def test_the_groups_of_whoever_started_the_agent_are_gone() -> None:
    """And those of the user are all there."""
    code = (
        "from tests.attacks.test_run_as import *\n"
        "print(said(run('id', '-G')), said(run('id', '-G', run_as='root')))"
    )
    mixed = subprocess.run(
        [sys.executable, "-c", code],
        extra_groups=[0, 4, 4242],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for line, name in zip(mixed, (USER, "root"), strict=False):
        gid = pwd.getpwnam(name).pw_gid
        assert set(line.split()) == set(map(str, os.getgrouplist(name, gid)))


@other.needs_root
def test_its_variables_and_folder_are_that_users() -> None:
    account = pwd.getpwnam(USER)
    lines = said(run("env")).splitlines()
    for name, value in (("HOME", account.pw_dir), ("USER", USER), ("LOGNAME", USER)):
        assert f"{name}={value}" in lines
    assert any(line.startswith("PCM_JOB_ID=") for line in lines)
    home = account.pw_dir if Path(account.pw_dir).is_dir() else "/"
    assert said(run("pwd")) == f"{home}\n"
    assert said(run("umask", shell=True)) == "0022\n"
    assert said(run("ulimit -Sn", shell=True)) == said(run("ulimit -Sn", shell=True, run_as="root"))


@other.needs_root
def test_it_may_open_its_own_output() -> None:
    told = said(run("echo out > /dev/stdout; echo err > /dev/stderr", shell=True))
    assert told == "out\nerr\n"


@other.needs_root
def test_it_starts_in_no_folder_and_no_program_that_its_user_may_not_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    program = secret / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    other.opened(tmp_path)
    secret.chmod(0o700)
    for argv, fields in ((("true",), {"cwd": str(secret / "inner")}), ((str(program),), {})):
        assert run(*argv, run_as="root", **fields).state is State.SUCCEEDED
        with pytest.raises(CannotStart, match=r"secret.*: Permission denied"):
            run(*argv, **fields)


@other.needs_root
def test_what_cannot_be_started_says_why() -> None:
    for argv, name, reason in (
        (("true",), "no-such-user", "run_as: no-such-user: there is no such user here"),
        (("no-such-program",), USER, "no-such-program: no such program"),
        (("/no/such/program",), USER, "/no/such/program: No such file"),
    ):
        with pytest.raises(CannotStart, match=reason):
            run(*argv, run_as=name)


@other.needs_root
def test_its_environment_is_not_heeded_before_the_rights_are_gone() -> None:
    """The loader complains for each program that it starts: once, for the command itself."""
    told = said(run("/bin/true", environment={"LD_PRELOAD": "/no/such/library"}))
    assert told.count("/no/such/library") == 1
    told = said(run("env", environment={"PYTHONVERBOSE": "1", "PYTHONHOME": "/no/such/folder"}))
    assert told.count("PYTHON") == 2


@other.needs_root
def test_it_is_ended_with_all_it_started() -> None:
    """What is left of it would keep its output open."""
    ended = run("sleep 3600 & sleep 3600", shell=True, timeout=timedelta(seconds=1))
    assert ended.state is State.TIMED_OUT


@pytest.mark.full
@other.needs_root
async def test_what_survives_its_agent_is_found_again_and_ended(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Its files are its user's, so that it may open them; what it wrote is reported."""
    service = ws.start("service")
    shared = other.opened(tmp_path) / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    pid = shared / "pid"
    script = f"echo one > /dev/stdout; echo $$ > {pid}; trap '' TERM; sleep 82.2; sleep 82.2"
    job = counted(ws, shared / "ran", script, background=True, run_as=USER, survives_agent=True)
    await dispatcher.dispatch(job)
    await asyncio.to_thread(until_there, pid)
    service.end(signal.SIGKILL)
    again = ws.start("service")
    again.wait_for("job.found")
    await dispatcher.cancel(job.id, "not wanted")
    report = await ended(dispatcher, job)
    assert report.state is State.CANCELLED
    assert report.result is not None
    assert str(report.result.stdout) == "one\n"
    assert (shared / "ran").stat().st_uid == other.UID
    assert not alive(int(pid.read_text()))
    no_traceback(again)


MARKED = """
import resource
if os.fork():
    os._exit(0)
os.setsid()
resource.setrlimit(10, (int(a[0]), int(a[0])))
code = "import os, time; os.write(1, b'ready' + bytes([10])); time.sleep(600)"
os.execve(sys.executable, ["python3", "-c", code, a[0]], {"PCM_JOB_ID": a[1]})
"""


@other.needs_root
def test_a_process_that_another_user_marks_as_a_jobs_is_not_taken_for_its_command() -> None:
    job_id = new_job_id()
    mark = str(job_mark("ws-1", job_id))
    with other.doing(MARKED, mark, job_id):
        (impostor,) = with_argument(mark)
        try:
            found = find("ws-1", job_id, "", {0})
            assert (set(found.tree.processes()), found.process) == ({impostor}, None)
            assert find("ws-1", job_id, "", {0, other.UID}).process == impostor
            elsewhere = find("ws-2", job_id, "", {0, other.UID})
            assert (elsewhere.tree.processes(), elsewhere.process) == ({}, None)
        finally:
            os.kill(impostor, signal.SIGKILL)


@other.needs_root
@pytest.mark.parametrize("recorded", [False, True])
def test_another_users_setuid_process_is_not_taken_for_a_jobs_command(
    tmp_path: Path, *, recorded: bool
) -> None:
    """It has root's rights: who started it counts. With an identity on record, that counts."""
    sleep = other.opened(tmp_path) / "sleep"
    shutil.copy("/bin/sleep", sleep)
    sleep.chmod(0o4755)
    job_id = new_job_id()
    mark = job_mark("ws-1", job_id)
    seconds = f"89.{mark}"
    user = ("setpriv", f"--reuid={other.UID}", f"--regid={other.UID}", "--clear-groups")
    limit = ("prlimit", f"--locks={mark}:{mark}")
    subprocess.run([*user, *limit, "setsid", "-f", sleep, seconds], check=True)
    until_true(lambda: with_argument(seconds))
    (impostor,) = with_argument(seconds)
    try:
        status = Path(f"/proc/{impostor}/status")
        until_true(lambda: re.search(rf"Uid:\t{other.UID}\t0\t0\t0", status.read_text()))
        identity = f"{process_identity(os.getpid())}0" if recorded else ""
        found = find("ws-1", job_id, identity, {0})
        assert (set(found.tree.processes()), found.process) == ({impostor}, None)
    finally:
        os.kill(impostor, signal.SIGKILL)


@other.needs_root
async def test_what_a_dead_agent_left_of_another_users_command_is_ended(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service")
    shared = other.opened(tmp_path) / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    pid = shared / "pid"
    job = ws.job(f"echo $$ > {pid}; sleep 82.3", shell=True, background=True, run_as=USER)
    await dispatcher.dispatch(job)
    await asyncio.to_thread(until_there, pid)
    service.end(signal.SIGKILL)
    ws.start("service")
    report = await ended(dispatcher, job)
    assert report.state is State.INTERRUPTED
    assert "its remaining processes were stopped" in report.reason
    assert not alive(int(pid.read_text()))


def test_it_is_shown_and_where_the_agent_is_not_root_it_is_not_applicable(ws: Workstation) -> None:
    """As in a container: never with other rights than were asked for."""
    program: Program = PCM_AGENT
    if os.geteuid() == 0:
        keep = "+dac_override,+chown,+fowner"
        words = ("setpriv", "--reuid=64321", "--regid=64321", "--clear-groups")
        program = (*words, f"--inh-caps={keep}", f"--ambient-caps={keep}", *PCM_AGENT)
        ws.state_dir.mkdir()
        os.chown(ws.state_dir, 64321, 64321)
    ws.start("service", program=program)
    options = ("--to", str(ws.target), "--background", "--run-as", USER, "--wait", "--", "id")
    sent = ws.run("pcm", "send", *options)
    assert sent.returncode == 1
    assert "this agent does not run as root" in sent.stdout + sent.stderr
    job = sent.stdout.split()[0]
    shown = ws.run("pcm", "show", job, history_url=f"sqlite:///{ws.folder}/history.db")
    assert re.search(rf"^run as +{USER}$", shown.stdout, re.MULTILINE)
    assert "not applicable" in shown.stdout
    listed = ws.run("pcm-agent", "history", "--json", state_dir=str(ws.state_dir))
    if os.geteuid() != 0:
        assert json.loads(listed.stdout)[0]["run_as"] == USER


def test_pcm_send_says_what_is_wrong(ws: Workstation) -> None:
    found = ws.run("pcm", "send", "--to", "all", "--run-as", USER, "--", "id")
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("pcm: --run-as: a foreground command runs as its user; ")
