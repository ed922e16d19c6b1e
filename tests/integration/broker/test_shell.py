"""What a shell sees of `pcm`: exit statuses, streams that are closed, and what stderr says."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from yarl import URL

from broker.amqp.topology import AgentKind, queue_name
from schemas import Command, Job, workstation
from tests.support.admin import Admin, check_in, ended
from tests.support.programs import BIN, pcm
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT, until
from tests.support.workstation import Workstation

TN = workstation("tn-room-4")


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Admin:
    return Admin(node.url, tmp_path)


def shell(admin: Admin, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of bash in which `pcm` is our program."""
    return subprocess.run(
        ["bash", "-c", script],
        env={**admin.environment, "PATH": f"{BIN}:{admin.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


async def test_the_status_is_the_jobs_though_the_reader_has_left(admin: Admin) -> None:
    job = Job(command=Command(argv=("false",), background=True), targets=(workstation("ws-pipe"),))
    await admin.tell([job])
    await admin.tell([ended(job, "ws-pipe", 1)])
    done = shell(
        admin,
        f"pcm watch {job.id} | true; echo ${{PIPESTATUS[0]}}\n"
        f"pcm watch {job.id} 2>&1 | true; echo ${{PIPESTATUS[0]}}\n"
        f"pcm watch {job.id} >&-; echo $?\n"
        f"pcm watch {job.id} <&- >&- 2>&-; echo $?\n"
        "pcm jobs | true; echo ${PIPESTATUS[0]}\n"
        "pcm nonsense 2>&-; echo $?",
    )
    assert done.stdout.split() == ["1", "1", "1", "1", "0", "2"]
    assert "Traceback" not in done.stderr


async def test_the_status_is_the_jobs_though_the_terminal_is_gone(admin: Admin) -> None:
    job = Job(command=Command(argv=("false",), background=True), targets=(workstation("ws-tty"),))
    await admin.tell([job])
    watching = admin.on_terminal("watch", job.id)
    await asyncio.to_thread(watching.until, lambda shown: "waits for ws-tty" in shown)
    watching.hang_up()
    await admin.tell([ended(job, "ws-tty", 1)])
    assert await asyncio.to_thread(watching.process.wait, LIMIT) == 1


def test_a_full_disk_is_told_and_no_success(admin: Admin) -> None:
    done = shell(admin, "pcm jobs > /dev/full; echo $?")
    assert done.stdout == "1\n"
    assert "pcm: standard output: No space left on device" in done.stderr.splitlines()


@pytest.fixture
def forbidden_host(node: Broker) -> Iterator[str]:
    """A virtual host in which the login has no permission."""
    host = f"Forbidden-{node.port}"
    node.ctl("add_vhost", host)
    try:
        yield host
    finally:
        node.ctl("delete_vhost", host)


def test_a_refused_virtual_host_is_named(node: Broker, forbidden_host: str) -> None:
    """And is not taken for a mix-up of TLS, nor for a broker that is out of reach."""
    user = URL(node.url).user or "guest"
    for host, why in (
        (forbidden_host, f"the user {user} has no permission there"),
        (forbidden_host.lower(), "it has none of this name, in which upper and lower case differ"),
        ("missing", "it has none of this name"),
    ):
        url = str(URL(node.url).with_path(f"/{host}"))
        done = pcm("send", "--to", "all", "--", "true", url=url)
        assert done.returncode == 1
        begin = f"pcm: 127.0.0.1:{node.port} as {user}: the broker refused the virtual host"
        assert done.stderr.startswith(f"{begin} {host!r}: {why}"), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://127.0.0.1:1/", "127.0.0.1:1 as guest: connection refused"),
        ("amqp://localhost:1/", "localhost:1 as guest: connection refused"),
        ("amqp://nowhere.invalid/", "nowhere.invalid:5672 as guest: the name of the host"),
    ],
)
def test_a_connection_that_fails_names_the_setting(url: str, why: str) -> None:
    done = pcm("send", "--to", "all", "--", "true", url=url)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pcm: the broker is unreachable: {why}")
    assert "PCM_AMQP_URL" in last


async def test_an_offer_is_told_as_one(admin: Admin) -> None:
    """`pcm send --to all -- uptime` prints an id, and nothing runs."""
    await admin.declare("ws-offer")
    to = ("send", "--to", "workstation:ws-offer")
    done = admin.run(*to, "--", "uptime")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stderr.startswith("pcm: this is an offer to users: without a user who accepts it")
    assert "--background" in done.stderr
    assert "--mandatory-at" in done.stderr
    asking = admin.run(*to, "--user-input-required", "--", "uptime")
    assert "--mandatory-at" in asking.stderr
    assert "--background" not in asking.stderr
    for options in (["--background"], ["--mandatory-at", "now"], ["--mandatory-at", "+1h"]):
        assert admin.run(*to, *options, "--", "uptime").stderr == ""
    jobs = [
        {"command": {"argv": ["true"], "background": background}, "targets": ["all"]}
        for background in (False, True)
    ]
    several = admin.run("send", "--file", "-", given=json.dumps(jobs))
    assert several.stderr.startswith("pcm: 1 of 2 are offers to users")


@pytest.mark.parametrize(
    ("when", "is_past"),
    [("2020-01-01T00:00Z", True), ("2020-01-01T00:00 local", True), ("+0s", False), ("now", False)],
)
def test_a_mandatory_time_in_the_past_is_refused(
    tmp_path: Path, when: str, *, is_past: bool
) -> None:
    fields = {"command": {"argv": ["true"]}, "targets": ["all"], "mandatory_at": when}
    file = tmp_path / "job.json"
    file.write_text(json.dumps(fields))
    checked = pcm("check", str(file))
    assert checked.returncode == (2 if is_past else 0)
    assert ("mandatory_at: is in the past: write now" in checked.stdout + checked.stderr) is is_past
    if is_past:
        done = pcm("send", "--to", "all", "--mandatory-at", when, "--", "true")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pcm: --mandatory-at: is in the past: write now")


@pytest.mark.parametrize(
    "words",
    [
        ["send", "--to", "all", "df", "-h"],
        ["send", "--to", "all", "df", "--help"],
        ["schedule", "add", "x", "--repeat", "0 2 * * *", "df", "-h"],
    ],
)
def test_a_help_option_behind_a_forgotten_separator_is_an_error(words: list[str]) -> None:
    done = pcm(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("unrecognized arguments: df: put -- before the command\n")


@pytest.mark.parametrize(
    "words",
    [["-h"], ["send", "-h"], ["send", "--to", "all", "-h"], ["rollout", "-h"], ["show", "-h"]],
)
def test_help_needs_no_other_argument(words: list[str]) -> None:
    done = pcm(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: pcm")


@pytest.mark.full
async def test_waiting_names_whom_it_waits_for(admin: Admin) -> None:
    await admin.declare("ws-off")
    to = ("send", "--to", "workstation:ws-off", "--background", "--wait", "--give-up-after", "5s")
    done = admin.run(*to, "--", "true")
    assert done.returncode == 1
    assert "pcm: waiting for ws-off, without a report yet" in done.stderr
    terminal = admin.on_terminal(*to, "--", "true")
    terminal.until(lambda text: "waits for ws-off, without a report yet" in text)
    assert terminal.end() == 1


def test_waiting_shows_the_whole_output(ws: Workstation) -> None:
    ws.start("service")
    script = "echo one; echo two; echo three >&2; exit 3"
    done = ws.run(
        "pcm", "send", "--to", str(ws.target), "--background", "--wait", "--shell", "--", script
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    where = next(at for at, line in enumerate(lines) if " failed " in line)
    shown = ["    one", "    two", "    -- stderr", "    three"]
    assert lines[where + 1 : where + 5] == shown


async def test_a_queue_that_was_made_anew_is_told(node: Broker, ws: Workstation) -> None:
    """A job that was in the former queue may be lost: it is not promised any more."""
    ws.start("service").end()
    sent = ws.run("pcm", "send", "--to", str(ws.target), "--background", "--", "true")
    assert sent.returncode == 0
    node.delete_queue(queue_name(AgentKind.SERVICE, ws.name))
    agent = ws.start("service")
    agent.wait_for("queue.new")

    def told() -> str:
        return ws.run("pcm", "why", sent.stdout.strip(), ws.name).stdout

    await until(lambda: "queue was made anew at" in told())
    assert "pcm rerun" in told()
    assert agent.end() == 0
    restarted = ws.start("service")
    assert not restarted.events("queue.new")


async def test_targets_are_lists_files_and_globs(admin: Admin, tmp_path: Path) -> None:
    members = [f"tg-{letter}" for letter in "abc"]
    await admin.tell(check_in(name, "tg-lab") for name in members)
    for name in members:
        await admin.declare(name, groups=["tg-lab"])
    file = tmp_path / "names.txt"
    file.write_text("tg-a, tg-b  # two of them\nworkstation:tg-c\n")

    def reached(*to: str) -> tuple[list[str], str]:
        options = [word for target in to for word in ("--to", target)]
        done = admin.run("send", *options, "--background", "--dry-run", "--json", "--", "true")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["reached"], done.stderr

    assert reached("tg-a,tg-b") == (members[:2], "")
    assert reached(f"@{file}") == (members, "")
    glob = "pcm: workstation:tg-* means tg-a, tg-b, tg-c\n"
    assert reached("tg-*") == (members, glob)
    assert reached("group:tg-l*") == (members, "pcm: group:tg-l* means tg-lab\n")
    for to, why in (
        ("nothing-*", "--to: workstation:nothing-*: matches no workstation that the history knows"),
        ("@/no/file", "--to: @/no/file: No such file or directory"),
        ("grup:x*", "--to: 'grup:x*' is not a target"),
    ):
        done = admin.run("send", "--to", to, "--", "true")
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
    paused = admin.run("pause", "group:tg-lab")
    assert (paused.returncode, paused.stderr) == (0, "pcm: group:tg-lab means tg-a, tg-b, tg-c\n")
    wrong = admin.run("pause", "group:tg-lob")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.endswith("no workstation is in it; did you mean tg-lab?\n")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["pause", "tn-room-5"], "tn-room-4"),
        (["forget", "tn-room-5", "--yes"], "tn-room-4"),
        (["workstations", "tn-room-5"], "tn-room-4"),
        (["send", "--to", "tn-room-5", "--", "true"], "tn-room-4"),
        (["send", "--to", "group:tn-labor", "--", "true"], "group:tn-labour"),
        (
            ["send", "--to", "tn-labour", "--to", "tn-rom-4", "--", "true"],
            "group:tn-labour, tn-room-4",
        ),
        (["cancel", "JOB", "--workstation", "tn-room-5"], "tn-room-4"),
        (["rerun", "JOB", "--workstation", "tn-room-5"], "tn-room-4"),
        (["output", "JOB", "tn-room-5"], "tn-room-4"),
        (["jobs", "--workstation", "tn-room-5"], "tn-room-4"),
        (["groups", "tn-labor"], "tn-labour"),
        (["workstations", "--group", "tn-labor"], "tn-labour"),
        (["send", "--waves", "100%", "--to", "group:tn-labor", "--", "true"], "group:tn-labour"),
        (["send", "--waves", "100%", "--to", "tn-room-5", "--", "true"], "tn-room-4"),
    ],
    ids=" ".join,
)
async def test_an_unknown_target_is_answered_with_the_nearest(
    admin: Admin, words: list[str], near: str
) -> None:
    job = Job(command=Command(argv=("true",), background=True), targets=(TN,))
    await admin.tell([check_in("tn-room-4", "tn-labour"), job])
    done = admin.run(*(job.id if word == "JOB" else word for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"; did you mean {near}?\n")
    assert done.stderr.count("\n") == 1


async def test_unknown_targets_in_a_file_of_several_jobs_are_answered_with_the_nearest(
    admin: Admin, tmp_path: Path
) -> None:
    await admin.tell([check_in("tn-room-4", "tn-labour")])
    await admin.declare("tn-room-4", groups=["tn-labour"])
    file = tmp_path / "jobs.yaml"
    job = "- {{targets: ['{}'], command: {{argv: [/bin/true], background: true}}}}\n"
    targets = ("workstation:tn-room-4", "workstation:tn-room-5", "group:tn-labor")
    file.write_text("".join(map(job.format, targets)))
    done = admin.run("send", "--file", str(file))
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    *failed, last = done.stderr.splitlines()
    assert len(failed) == 2
    assert last == "pcm: did you mean tn-room-4, group:tn-labour?"
    dry = admin.run("send", "--to", "tn-room-5", "--background", "--dry-run", "--", "true")
    assert "pcm send sends nothing; did you mean tn-room-4?\n" in dry.stdout
    args = ("send", "--to", "tn-room-5", "--secret", "TOKEN=-", "--", "true")
    assert admin.run(*args, given="x").stderr.endswith(
        "nothing was sent; did you mean tn-room-4?\n"
    )


@pytest.mark.parametrize(
    ("words", "near"), [(["sned"], "send"), (["rollout", "abrot", "x"], "abort")]
)
def test_a_misspelt_command_is_answered_with_the_nearest(words: list[str], near: str) -> None:
    done = pcm(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"; did you mean {near}?\n")
    assert done.stderr.count("\n") == 1


def test_without_the_broker_no_history_of_another_virtual_host_is_shown(admin: Admin) -> None:
    here = URL(admin.url).path
    done = admin.run("jobs", amqp_url=f"amqp://127.0.0.1:1{here}", patience="1s")
    assert done.returncode == 0
    assert done.stderr.startswith("pcm: the history may be out of date: ")
    done = admin.run("jobs", amqp_url="amqp://127.0.0.1:1/other", patience="1s")
    assert (done.returncode, done.stdout) == (2, "")
    assert "PCM_AMQP_URL names the virtual host other: set another PCM_HISTORY_URL" in done.stderr
