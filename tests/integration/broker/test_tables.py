"""Tables on a terminal have one line per row, at any width; elsewhere nothing is cut."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import pytest

from schemas import Job, Schedule, State
from tests.support.admin import Admin, check_in, ended
from tests.support.programs import BIN
from tests.support.rabbitmq import Broker
from tests.support.simulated_fleet import NOW, SimulatedFleet, result
from tests.support.terminal import OnTerminal

S = State
SIZES = [(80, 24), (120, 40)]


async def one_job(fleet: SimulatedFleet) -> Job:
    """Append a job and reports that make long rows."""
    job = fleet.job(
        *("a-workstation-of-a-long-name-in-the-lab", "b"),
        argv=("/opt/update/office", "--channel", "stable" * 20),
        sender="a-long-login-name@administration.example",
        created_at=NOW - timedelta(minutes=7),
    )
    long = "the file system is full, and nothing can be written to it any more " * 3
    await fleet.append(
        *(fleet.check_in(word) for word in ("a-workstation-of-a-long-name-in-the-lab", "b")),
        job,
        fleet.report(
            job,
            "a-workstation-of-a-long-name-in-the-lab",
            S.FAILED,
            reason="exit code 7",
            result=result(7, stderr=long),
        ),
        fleet.report(job, "b", S.SUCCEEDED, result=result(3010, restart_required=True)),
    )
    return job


def shown(fleet: SimulatedFleet, size: tuple[int, int], *words: str) -> list[str]:
    """Return what a command shows on a terminal, a line of which ends where the terminal does."""
    columns, rows = size
    terminal = OnTerminal([BIN / "pcm", *words], fleet.environment, columns, rows)
    assert terminal.end() == 0, terminal.screen.shown
    # A field below the table may take several lines; a row of the table may not.
    long = [line for line in terminal.screen.shown if len(line) > columns]
    assert all(line.startswith(("name ", "command ", "targets ", "pcm: ")) for line in long), long
    return terminal.screen.shown


@pytest.mark.parametrize("size", SIZES)
async def test_jobs_are_a_line_each(fleet: SimulatedFleet, size: tuple[int, int]) -> None:
    job = await one_job(fleet)
    head, line = shown(fleet, size, "jobs", "--text", fleet.prefix)
    assert head.split()[:2] == ["JOB", "NAME"]
    assert line.startswith(job.id)
    assert re.search(r"\d+ min", line)
    assert "1 succeeded (1 r" in line
    assert "…" in line
    piped = fleet.pcm("jobs", "--text", fleet.prefix).stdout
    assert "1 succeeded (1 restart required), 1 failed" in piped
    assert "a-long-login-name@administration.example" in piped
    assert re.search(r" UTC, \d+ min ", piped)


@pytest.mark.parametrize("size", SIZES)
async def test_a_job_s_workstations_are_a_line_each(
    fleet: SimulatedFleet, size: tuple[int, int]
) -> None:
    job = await one_job(fleet)
    found = shown(fleet, size, "show", job.id)
    pairs = found[next(at for at, line in enumerate(found) if line.startswith("WORKSTATION")) :]
    assert len(pairs) == 3
    assert "the file system" in pairs[1]
    assert "succeeded, restart required" in pairs[2]
    assert any(line.split() == ["restart", "required", "1"] for line in found)


@pytest.mark.parametrize("size", SIZES)
async def test_workstations_are_a_line_each(
    node: Broker, tmp_path: Path, size: tuple[int, int]
) -> None:
    admin = Admin(node.url, tmp_path)
    names = [f"wide-{size[0]}-{number}-of-a-long-name-in-the-lab" for number in range(3)]
    groups = [f"wide-{size[0]}", *(f"a-group-of-many-{number}" for number in range(8))]
    await admin.append(check_in(name, *groups) for name in names)
    terminal = OnTerminal(
        [BIN / "pcm", "workstations", "--group", groups[0]], admin.environment, *size
    )
    assert terminal.end() == 0
    assert len(terminal.screen.shown) == 1 + 3
    assert max(map(len, terminal.screen.shown)) <= size[0]
    piped = admin.run("workstations", "--group", groups[0]).stdout
    assert ", ".join(sorted(groups)) in piped
    assert " IST " in piped


@pytest.mark.parametrize("size", SIZES)
async def test_schedules_are_a_line_each(fleet: SimulatedFleet, size: tuple[int, int]) -> None:
    job = fleet.job("a", created_at=NOW)
    name = fleet.name("nightly-upgrade-of-all-in-the-lab")
    await fleet.append(
        Schedule(name=name, repeat="0 2,4,6 1-7 */2 1-5", zone="America/Indiana/Knox", job=job)
    )
    found = [line for line in shown(fleet, size, "schedule", "list") if fleet.prefix in line]
    assert len(found) == 1
    assert "America/Indiana/Knox" in found[0]


async def test_the_jobs_of_one_workstation_with_their_state_there(fleet: SimulatedFleet) -> None:
    both, other = fleet.job("a", "b"), fleet.job("b")
    await fleet.append(
        *(fleet.check_in(word) for word in "abc"),
        *(both, other),
        fleet.report(both, "a", S.FAILED, reason="broken"),
        fleet.report(both, "b", S.SUCCEEDED, result=result(0)),
    )

    def listed(word: str, *words: str) -> dict[str, str]:
        import json

        rows = json.loads(
            fleet.pcm("jobs", "--workstation", fleet.name(word), "--json", *words).stdout
        )
        assert {row["workstation"] for row in rows} <= {fleet.name(word)}
        return {row["job"]: row["state"] for row in rows}

    assert listed("a") == {both.id: "failed"}
    assert listed("b") == {both.id: "succeeded", other.id: "queued"}
    assert listed("b", "--state", "failures") == {}
    assert listed("b", "--state", "ended") == {both.id: "succeeded"}
    assert listed("c") == {}
    head, line = fleet.pcm("jobs", "--workstation", fleet.name("a")).stdout.splitlines()
    assert (head.split()[:2], line.split()[:2]) == (["JOB", "STATE"], [both.id, "failed"])
    unknown = fleet.pcm("jobs", "--workstation", "no-such-name")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == (
        "pcm: --workstation: no-such-name: no such workstation has checked in\n"
    )


async def test_watching_tells_each_thing_once_and_that_there_is_more(
    node: Broker, tmp_path: Path
) -> None:
    from schemas import Command, Output, workstation

    admin = Admin(node.url, tmp_path)
    names = [f"once-{letter}" for letter in "abc"]
    targets = tuple(map(workstation, names))
    job = Job(command=Command(argv=("x",), background=True), targets=targets)
    await admin.append([job])
    many, one = Output(head=b"oops\nagain\n"), Output(head=b"hello\n")
    skipped = ended(job, names[2]).model_copy(
        update={"state": S.NOT_APPLICABLE, "result": None, "reason": "runs on windows"}
    )
    restart = ended(job, names[1], stdout=one)
    assert restart.result
    wanted = restart.result.model_copy(update={"restart_required": True, "exit_code": 3010})
    await admin.append(
        [
            ended(job, names[0], 3, stderr=many).model_copy(update={"reason": "exit code 3"}),
            restart.model_copy(update={"result": wanted}),
            skipped,
        ]
    )
    done = await asyncio.to_thread(admin.run, "watch", job.id)
    *lines, summary = done.stdout.splitlines()
    unindented = [line for line in lines if not line.startswith(" ")]
    assert [line for line in lines if line not in unindented] == [
        "    -- stderr",
        "    oops",
        "    again",
    ]
    failed, succeeded, other = sorted(unindented)
    assert failed.split()[1:] == ["failed", "service", "exit", "3", "1.00s"]
    assert succeeded.endswith("exit 3010  1.00s  restart required  hello")
    assert {line.index(" service ") for line in unindented} == {31}
    assert other.endswith("runs on windows")
    assert summary.endswith("1 succeeded (1 restart required), 1 failed, 1 not applicable")
