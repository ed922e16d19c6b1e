"""`pcm send --dry-run`: whom a job would reach, and that nothing is sent."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import pytest

from schemas import Command, Facts, Job, group, workstation
from tests.support.admin import Admin, check_in
from tests.support.rabbitmq import Broker


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Admin:
    return Admin(node.url, tmp_path)


async def depth(admin: Admin, name: str) -> int:
    connection = await aio_pika.connect(admin.url)
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue(f"pcm.service.{name}", passive=True)
        return queue.declaration_result.message_count or 0


def plan(admin: Admin, *words: str, given: str | None = None) -> dict[str, object]:
    done = admin.run("send", "--dry-run", "--json", *words, given=given)
    assert done.stderr == ""
    found: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == (0 if found["reached"] and not found["unknown_targets"] else 1)
    return found


async def test_it_tells_whom_a_job_would_reach_and_sends_nothing(admin: Admin) -> None:
    await admin.declare("dr-1", groups=["dr"])
    await admin.append([check_in("dr-1", "dr"), check_in("dr-2", "dr"), check_in("dr-3")])
    words = ["--to", "group:dr", "--to", "workstation:dr-3", "--to", "workstation:dr-new"]
    done = admin.run("send", "--dry-run", *words, "--to", "group:dr-empty", "--", "true")
    assert (done.returncode, done.stderr) == (1, "")
    printed = {line[:16].strip(): line[16:] for line in done.stdout.splitlines()}
    assert done.stdout.startswith("true: would reach 3 workstations")
    assert printed["reached"] == "3: dr-1, dr-2, dr-3"
    assert printed["unknown targets"] == "2: workstation:dr-new, group:dr-empty"
    assert "no queue is bound for one of these, pcm send sends nothing" in done.stdout
    assert printed["routing keys"].startswith("4: foreground.optional.group.dr, ")
    assert printed["offer at"] == "immediately"
    assert datetime.fromisoformat(printed["expires at"][:10]).replace(tzinfo=UTC) > datetime.now(
        UTC
    ) + timedelta(days=28)
    assert printed["mandatory at"] == "never: it is optional"
    assert done.stdout.endswith("nothing was sent\n")
    assert await depth(admin, "dr-1") == 0


async def test_those_of_another_platform_are_distinguished(admin: Admin) -> None:
    machines = {
        "dp-64": Facts(os="linux", arch="x86_64"),
        "dp-arm": Facts(os="linux", arch="aarch64"),
        "dp-mac": Facts(os="macos", arch="aarch64"),
        "dp-silent": Facts(),
    }
    await admin.append(check_in(name, "dp", facts=facts) for name, facts in machines.items())
    to = ("--to", "group:dp", "--platform")
    assert plan(admin, *to, "linux", "--", "x")["not_applicable"] == ["dp-mac"]
    found = plan(admin, *to, "linux/amd64", "--platform", "macos", "--", "x")
    assert found["not_applicable"] == ["dp-arm"]
    assert found["reached"] == sorted(machines.keys() - {"dp-arm"})


async def test_those_left_out_are_reported_of_a_file(admin: Admin) -> None:
    await admin.append([check_in(f"de-{number}", "de") for number in range(4)])
    job = Job(
        command=Command(argv=("true",), background=True),
        targets=(group("de"),),
        excluded=(workstation("de-2"), workstation("de-3")),
    )
    found = plan(admin, "--file", "-", given=job.body().decode())
    assert (found["job"], found["reached"], found["excluded"]) == (
        job.id,
        ["de-0", "de-1"],
        ["de-2", "de-3"],
    )
    assert found["routing_keys"] == ["background.optional.group.de"]


async def test_of_a_file_of_several_jobs_each_is_reported(admin: Admin) -> None:
    await admin.append([check_in("ds-1", "ds")])
    jobs = [
        Job(command=Command(argv=("true",)), targets=(group(name),), name=name)
        for name in ("ds", "ds-empty")
    ]
    text = "[" + ",".join(job.body().decode() for job in jobs) + "]"
    done = admin.run("send", "--dry-run", "--json", "--file", "-", given=text)
    assert (done.returncode, done.stderr) == (1, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [plan["reached"] for plan in found] == [["ds-1"], []]
    printed = admin.run("send", "--dry-run", "--file", "-", given=text).stdout
    assert "\nds-empty: would reach 0 workstations, " in printed
    assert printed.count("nothing was sent\n") == 1


async def test_it_tells_when(admin: Admin) -> None:
    await admin.append([check_in("dw-1")])
    words = ["--to", "workstation:dw-1", "--mandatory-at", "2031-05-01T02:00 local", "--", "x"]
    text = admin.run("send", "--dry-run", *words).stdout
    assert "mandatory at    2031-05-01 02:00:00 on each workstation's clock\n" in text
    assert plan(admin, *words)["times"] == {
        "offer_at": None,
        "mandatory_at": {"local": "2031-05-01T02:00:00"},
        "expires_at": None,
    }
    words[2:4] = ["--expires-at", "2031-05-01T02:00+02:00"]
    text = admin.run("send", "--dry-run", *words).stdout
    assert "expires at      2031-05-01 05:30:00 IST\n" in text


async def test_reaching_no_workstation_is_exit_status_1(admin: Admin) -> None:
    await admin.append([check_in("dn-1")])
    found = plan(admin, "--to", "group:dn-empty", "--", "true")
    assert (found["reached"], found["unknown_targets"]) == ([], ["group:dn-empty"])


async def test_of_very_many_fifty_are_named(admin: Admin) -> None:
    await admin.append(check_in(f"dm-{number:02}", "dm") for number in range(60))
    text = admin.run("send", "--dry-run", "--to", "group:dm", "--", "true").stdout
    assert "reached         60: dm-00, " in text
    assert text.count("dm-") == 50
    assert " and 10 more; --json lists all" in text
    found = plan(admin, "--to", "group:dm", "--", "true")
    assert found["reached"] == [f"dm-{number:02}" for number in range(60)]


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--wait"], "--wait"), (["--to", "every body"], "--to"), (["--timeout", "0s"], "--timeout")],
)
def test_a_wrong_option_is_named(admin: Admin, words: list[str], named: str) -> None:
    to = () if "--to" in words else ("--to", "all")
    done = admin.run("send", "--dry-run", *to, *words, "--", "true")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


def test_what_is_too_large_to_be_sent_is_reported(admin: Admin) -> None:
    command = Command(argv=("echo", *["x" * 100_000] * 11))
    body = Job(command=command, targets=(group("any"),)).body().decode()
    done = admin.run("send", "--dry-run", "--file", "-", given=body)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "1048576" in done.stderr
