"""`pcm watch` on a terminal, through a pipe, and as JSON; with reports of fleets that are not."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import (
    AgentsRevoked,
    Command,
    Job,
    Output,
    Report,
    State,
    WorkstationForgotten,
    group,
    workstation,
)
from tests.support.admin import Admin, check_in, ended, report
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Admin:
    return Admin(node.url, tmp_path)


def job_for(name: str) -> Job:
    return Job(command=Command(argv=("true",), background=True), targets=(group(name),))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number:04}" for number in range(count)]


async def send(admin: Admin, job: Job, members: list[str]) -> None:
    """Append a job for a group and the check-ins of its members."""
    (target,) = job.targets
    await admin.append(check_in(name, target.name or "") for name in members)
    await admin.append([job])


def begun(job: Job, members: list[str]) -> Iterator[Report]:
    for state in (State.RECEIVED, State.STARTED):
        yield from (report(job, name, state) for name in members)


def output(text: str) -> Output:
    return Output(head=text.encode())


@pytest.mark.full
async def test_a_thousand_workstations_are_a_few_lines(admin: Admin) -> None:
    job, members = job_for("wk"), names("wk", 1000)
    await send(admin, job, members)
    terminal = admin.on_terminal("watch", job.id, settle="3s")
    terminal.until(lambda text: "0 % of 1000" in text)
    await admin.append(begun(job, members[:900]))
    terminal.until(lambda text: "900 started, 100 queued" in text)
    text = terminal.until(lambda text: "runs on wk-" in text)
    assert " and 895 more" in text
    await admin.append(
        ended(job, name, int(number < 90), stderr=output(f"no {('disk', 'net')[number % 3 == 0]}"))
        for number, name in enumerate(members[:450])
    )
    text = terminal.until(lambda text: "failed on 90, in 2 ways" in text and "45 % of" in text)
    assert "360 succeeded, 90 failed, 450 started, 100 queued" in text
    await admin.append(ended(job, name) for name in members[450:900])
    assert terminal.end() == 1
    lines = terminal.screen.shown
    assert len(lines) <= 8, lines
    assert sorted(line.split("wk-")[1][4:].split() for line in lines[:2]) == [
        ["failed", "exit", "1", "no", "disk"],
        ["failed", "exit", "1", "no", "net"],
    ]
    assert lines[2].split()[:6] == ["60", "failed", "exit", "1", "no", "disk"]
    assert lines[3].split()[:6] == ["30", "failed", "exit", "1", "no", "net"]
    assert lines[4] == f"{job.id}: 810 succeeded, 90 failed, 100 queued"
    missing = " ".join(lines[5:])
    assert "wk-0900" in missing
    assert " and 90 more;" in missing
    assert f"pcm show {job.id}" in missing
    assert terminal.written < 100_000


async def test_few_workstations_have_a_line_each_at_the_end(admin: Admin) -> None:
    job, members = job_for("wh"), names("wh", 3)
    await send(admin, job, members)
    await admin.append(begun(job, members))
    await admin.append(ended(job, name, stdout=output("hello")) for name in members)
    terminal = admin.on_terminal("watch", job.id)
    assert terminal.end() == 0
    *lines, last = terminal.screen.shown
    assert [line.split() for line in lines] == [
        [name, "succeeded", "service", "exit", "0", "1.00s", "hello"] for name in members
    ]
    assert last == f"{job.id}: 3 succeeded"


async def test_very_many_kinds_of_failure_are_counted(admin: Admin) -> None:
    job, members = job_for("wv"), names("wv", 200)
    await send(admin, job, members)
    await admin.append(
        ended(job, name, 1, stderr=output(f"error {number % 100}"))
        for number, name in enumerate(members)
    )
    terminal = admin.on_terminal("watch", job.id)
    assert terminal.end() == 1
    lines = terminal.screen.shown
    assert len(lines) == 20 + 20 + 1 + 1
    assert [line.split()[0] for line in lines[20:40]] == ["2"] * 20
    assert lines[-2:] == ["   160 in 80 other ways", f"{job.id}: 200 failed"]


async def test_what_a_command_wrote_does_nothing_to_the_terminal(admin: Admin) -> None:
    job, members = job_for("we"), names("we", 40)
    await send(admin, job, members)
    await admin.append(
        report(job, name, State.REFUSED, reason="\x1b[2Jbad [red]one[/]\n") for name in members
    )
    terminal = admin.on_terminal("watch", job.id)
    assert terminal.end() == 1
    reason = "refused  \\x1b[2Jbad [red]one[/]\\n"
    first, second, _ = terminal.screen.shown
    assert first.endswith(reason)
    assert second.startswith(f"    40 {reason}")


async def test_elsewhere_it_is_a_line_a_report(admin: Admin) -> None:
    job, members = job_for("wt"), names("wt", 40)
    await send(admin, job, members)
    await admin.append(begun(job, members[:38]))
    await admin.append(ended(job, name) for name in members[:38])
    done = admin.run("watch", job.id)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, summary, missing, later = done.stdout.splitlines()
    assert len(lines) == 3 * 38
    assert sum(line.split()[1:] == ["succeeded", "service", "exit", "0", "1.00s"] for line in lines)
    assert summary == f"{job.id}: 38 succeeded, 2 queued"
    assert missing == "still queued for wt-0038, wt-0039;"
    assert later == f"pcm show {job.id} shows the results later"


async def test_json_is_a_line_a_report_and_nothing_else(admin: Admin) -> None:
    job, members = job_for("wj"), names("wj", 5)
    await send(admin, job, members)
    reports = [*begun(job, members[:4]), *(ended(job, name) for name in members[:4])]
    await admin.append(reports)
    done = admin.run("watch", job.id, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = [Report.read(line) for line in done.stdout.splitlines()]
    assert sorted(one.id for one in found) == sorted(one.id for one in reports)
    assert not admin.has_asked


async def test_ctrl_c_ends_the_watching_and_says_so(admin: Admin) -> None:
    job = job_for("wc")
    await send(admin, job, ["wc-1"])
    await admin.append(begun(job, ["wc-1"]))
    terminal = admin.on_terminal("watch", job.id)
    terminal.until(lambda text: "runs on wc-1" in text)
    terminal.interrupt()
    assert terminal.end() == 130
    assert terminal.screen.shown == [
        f"pcm: the job continues; to follow it again: pcm watch {job.id}"
    ]
    piped = admin.start("watch", job.id, "--json")
    assert piped.stdout is not None
    assert json.loads(piped.stdout.readline())["state"] == "received"
    piped.send_signal(signal.SIGINT)
    _, printed = piped.communicate(timeout=LIMIT)
    assert (piped.returncode, len(printed.splitlines())) == (130, 1)


async def test_giving_up_names_those_it_waits_for(admin: Admin) -> None:
    job, members = job_for("wg"), names("wg", 12)
    await send(admin, job, members)
    await admin.append(begun(job, members))
    done = admin.run("watch", job.id, "--give-up-after", "2s")
    assert done.returncode == 1
    gave_up, summary = done.stdout.splitlines()[-2:]
    assert gave_up == f"gave up waiting for {', '.join(members[:10])} and 2 more"
    assert summary == f"{job.id}: 12 started"


async def test_without_a_history_it_counts_whom_it_heard_of(admin: Admin) -> None:
    job, members = job_for("wx"), names("wx", 3)
    await send(admin, job, members)
    await admin.append(ended(job, name) for name in members[:2])
    done = admin.run("watch", job.id, history_url="sqlite:////proc/none/history.db")
    assert done.returncode == 0
    assert done.stderr.startswith("pcm: without the history: PCM_HISTORY_URL: ")
    assert done.stdout.splitlines()[-1] == f"{job.id}: 2 succeeded"


async def test_a_job_that_names_all_needs_no_history(admin: Admin) -> None:
    job = Job(command=Command(argv=("x",)), targets=(workstation("wa-1"), workstation("wa-2")))
    await admin.append([job, ended(job, "wa-1")])
    done = admin.run("watch", job.id, "--give-up-after", "5s")
    summary = f"{job.id}: 1 succeeded, 1 queued"
    assert done.stdout.splitlines()[1:3] == ["gave up waiting for wa-2", summary]
    assert not admin.has_asked


async def test_who_is_forgotten_or_revoked_is_not_waited_for(admin: Admin) -> None:
    members = [f"wg-{letter}" for letter in "abc"]
    sent = Job(
        command=Command(argv=("true",), background=True), targets=tuple(map(workstation, members))
    )
    for name in members:  # what was before the job says nothing of it
        await admin.append([WorkstationForgotten(workstation=name)])
    await admin.append([sent])
    await admin.append([ended(sent, members[0])])
    await admin.append([WorkstationForgotten(workstation=members[1])])
    await admin.append([AgentsRevoked(workstation=members[2], agents=("interactive-ada",))])
    process = admin.start("watch", sent.id)
    await admin.append([AgentsRevoked(workstation=members[2], agents=("service",))])
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    *_, summary, gone = out.decode().splitlines()
    assert summary == f"{sent.id}: 1 succeeded, 2 unreachable"
    assert gone == f"forgotten or revoked before it ended there: {', '.join(members[1:])}"
