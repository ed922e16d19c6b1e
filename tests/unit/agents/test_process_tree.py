"""All that a command started is ended with it, by whatever way it went; or left, if wanted."""

import asyncio
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.execution.processes import cgroup
from agents.execution.processes.orphans import find
from agents.execution.processes.process_table import mark_of
from agents.execution.processes.process_tree import job_mark
from schemas.orders.job import new_job_id
from tests.support.processes import with_argument
from tests.support.waiting import LIMIT, until_there, until_true

# A cgroup needs root here; for the other way the hierarchy is made read-only, as in a container.
READ_ONLY = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -o remount,bind,ro "$(findmnt -nft cgroup2 -o TARGET)" && exec "$@"',
    "sh",
)
PREFIX = {"cgroup": (), "subreaper": READ_ONLY if os.geteuid() == 0 else ()}
HAS_CGROUP = os.geteuid() == 0 and cgroup.Cgroup.create("pcm.probe.1") is not None
cgroup.remove_empty("probe")
both = pytest.mark.parametrize(
    "means",
    [
        pytest.param(
            "cgroup", marks=pytest.mark.skipif(not HAS_CGROUP, reason="no cgroup can be made here")
        ),
        "subreaper",
    ],
)
WAYS = {
    "in its group": "sleep {n} &",
    "in a group of its own": "timeout 90 sleep {n} &",
    "in a session of its own": "setsid sleep {n} &",
    "as an orphan without variables": "env -i setsid -f setsid -f sleep {n}",
    "as an orphan with another mark": "env -i prlimit --locks=5:5 setsid -f setsid -f sleep {n}",
    "that ignores SIGTERM": "(trap '' TERM; exec setsid -f sleep {n})",
}
QUICK = "as an orphan without variables"
ways = pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=() if name == QUICK else pytest.mark.full)
        for name, way in WAYS.items()
    ],
)


@contextmanager
def agent(
    means: str, script: str, job_id: str = "", **fields: object
) -> Iterator["subprocess.Popen[str]"]:
    """Run a command as an agent does."""
    words = (*PREFIX[means], sys.executable, "-m", "tests.support.one_command")
    with subprocess.Popen(
        [*words, job_id or new_job_id(), json.dumps(fields), script],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def outcome(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return the state and the reason that an agent prints."""
    told = json.loads(process.communicate(timeout=LIMIT)[0])
    return told["state"], told["reason"]


@pytest.fixture
def number() -> Iterator[str]:
    """A number of seconds by which processes are found; what is left of them is ended."""
    text = f"9{secrets.randbelow(10**9):09}.5"
    yield text
    for pid in with_argument(text):
        os.kill(pid, signal.SIGKILL)
    cgroup.remove_empty("ws-1")


def leaving(tmp_path: Path, way: str, number: str, after: str = "") -> str:
    """Return a script that leaves a process, and goes on when that runs."""
    look = f"until pgrep -f '[s]leep {number}' > /dev/null; do sleep 0.05; done"
    return f"{way.format(n=number)}\n{look}\necho > {tmp_path / 'ready'}\n{after}"


@both
@ways
def test_what_a_command_leaves_is_ended_and_told(
    means: str, way: str, tmp_path: Path, number: str
) -> None:
    with agent(means, leaving(tmp_path, way, number)) as process:
        assert outcome(process) == ("succeeded", "the processes it left behind were ended")
    assert not with_argument(number)


@both
@ways
def test_a_time_limit_ends_all(means: str, way: str, tmp_path: Path, number: str) -> None:
    script = leaving(tmp_path, way, number, "exec sleep 97")
    with agent(means, script, timeout=2 if way != WAYS["in its group"] else 1) as process:
        until_there(tmp_path / "ready")
        assert outcome(process)[0] == "timed_out"
    assert not with_argument(number)


@both
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1], ids=["cancelled", "killed"])
@ways
def test_a_cancellation_and_an_agents_second_signal_end_all(
    means: str, how: int, way: str, tmp_path: Path, number: str
) -> None:
    with agent(means, leaving(tmp_path, way, number, "exec sleep 97")) as process:
        until_there(tmp_path / "ready")
        process.send_signal(how)
        assert outcome(process)[0] == ("cancelled" if how == signal.SIGTERM else "interrupted")
    assert not with_argument(number)


@both
@ways
def test_what_a_dead_agent_left_is_ended(means: str, way: str, tmp_path: Path, number: str) -> None:
    job_id = new_job_id()
    is_lost = means == "subreaper" and "prlimit" in way
    script = leaving(tmp_path, way, number, "exec sleep 97")
    if means == "cgroup":  # it is moved there at its start
        script = f"until grep -q pcm /proc/self/cgroup; do sleep 0.05; done\n{script}"
    with agent(means, script, job_id) as process:
        until_there(tmp_path / "ready")
    found = find("ws-1", job_id, "", {os.geteuid()})
    assert found.process is not None or "setsid" in way  # more than one leads a session
    assert asyncio.run(found.tree.end(0.3))
    assert not find("ws-1", job_id, "", {os.geteuid()}).tree.processes()
    assert bool(with_argument(number)) == is_lost
    assert process.returncode == -signal.SIGKILL


@both
@ways
def test_what_a_job_wants_to_leave_is_left(
    means: str, way: str, tmp_path: Path, number: str
) -> None:
    with agent(means, leaving(tmp_path, way, number), leaves_processes=True) as process:
        assert outcome(process) == ("succeeded", "")
    assert with_argument(number)


@both
def test_what_is_left_may_write_for_ever(means: str, tmp_path: Path, number: str) -> None:
    """The output of its command is taken in, also when the agent has ended."""
    said = tmp_path / "said"
    loop = f"while sleep 0.05; do echo more && echo >> {said}; done"
    script = f"(sh -c '{loop}' {number} &)\nuntil test -s {said}; do sleep 0.05; done"
    with agent(means, script, leaves_processes=True) as process:
        assert outcome(process) == ("succeeded", "")
    before = said.stat().st_size
    until_true(lambda: said.stat().st_size > before + 2)
    assert with_argument(number)


@both
def test_a_time_limit_ends_a_command_that_would_leave_processes(
    means: str, tmp_path: Path, number: str
) -> None:
    """It has not ended by itself: what it started is not ready to be left."""
    script = leaving(tmp_path, WAYS["in a session of its own"], number, "exec sleep 97")
    with agent(means, script, leaves_processes=True, timeout=1) as process:
        assert outcome(process)[0] == "timed_out"
    assert not with_argument(number)


def test_a_mark_is_of_one_job_on_one_workstation_and_leaves_no_trace_in_the_agent() -> None:
    marks = {job_mark(ws, job) for ws in ("a", "b", "a b") for job in ("1", "2", "b 1")}
    assert len(marks) == 8  # "a b" and "1" is as "a" and "b 1": no name has a space
    assert all(2**30 <= mark < 2**31 for mark in marks)
    assert mark_of(os.getpid()) is None or os.geteuid() != 0
    assert resource.getrlimit(10)[0] == resource.getrlimit(10)[1]


@pytest.mark.full
def test_zombies_of_orphans_are_waited_for() -> None:
    """As process 1 of a container, too: nobody else does."""
    code = (
        "import asyncio\n"
        "from agents.execution.processes import subreaper\n"
        "subreaper.become_subreaper()\n"
        "assert subreaper.is_subreaper()\n"
        "import os, subprocess\n"
        "subprocess.run(['setsid', '-f', 'true'], check=True)\n"
        "async def main():\n"
        "    task = asyncio.create_task(subreaper.reap_orphans())\n"
        "    while subreaper.orphans():\n"
        "        await asyncio.sleep(0.05)\n"
        "asyncio.run(main())\n"
    )
    words = (sys.executable, "-c", code)
    subprocess.run(words, check=True, timeout=LIMIT)
    if os.geteuid() == 0:
        subprocess.run(("unshare", "--pid", "--fork", "--mount-proc", *words), check=True)


@pytest.mark.skipif(not HAS_CGROUP, reason="no cgroup can be made here")
def test_no_cgroup_stays_behind(tmp_path: Path, number: str) -> None:
    way = WAYS[QUICK]
    with agent("cgroup", leaving(tmp_path, way, number), "no-cgroup-stays") as process:
        assert outcome(process)[0] == "succeeded"
    assert "pcm.ws-1.no-cgroup-stays" not in cgroups()


def cgroups() -> set[str]:
    """Return the names of the cgroups below this process's."""
    folder = cgroup._own_folder()  # noqa: SLF001
    assert folder is not None
    return {path.name for path in folder.glob("pcm.ws-1.*")}


def test_a_process_is_found_by_argument(number: str) -> None:
    """The tests above could not fail else."""
    with subprocess.Popen(["sleep", number]) as process:
        until_true(lambda: with_argument(number) == [process.pid])
        process.kill()
