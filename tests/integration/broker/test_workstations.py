"""`pcm workstations`, `groups`, `pause`, `resume` and `forget`, as an administrator runs them."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import pytest

from broker.amqp import topology
from broker.amqp.topology import AgentKind
from schemas import Command, Job, Pause, State, group, workstation
from schemas.reports.check_in import Machine
from tests.support.admin import Admin, check_in, report
from tests.support.queues import take_all
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation

PAUSE = Pause(workstation="wl-paused", paused=True, reason="exam", sender="ada@hq")


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Admin:
    return Admin(node.url, tmp_path)


async def queues(admin: Admin, *names: str) -> list[str]:
    """Return those of some queues that are there."""
    found = []
    connection = await aio_pika.connect(admin.url)
    async with connection:
        for name in names:
            try:
                async with connection.channel() as channel:
                    await channel.declare_queue(name, passive=True)
                found.append(name)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                pass
    return found


async def taken(admin: Admin, queue: str) -> list[Pause]:
    """Consume the orders in a queue."""
    connection = await aio_pika.connect(admin.url)
    async with connection, connection.channel() as channel:
        found = []
        for message in await take_all(channel, queue):
            if message.type != "probe":
                assert message.type == "pause"
                found.append(Pause.read(message.body))
        return found


def rows(admin: Admin, *words: str) -> list[dict[str, object]]:
    done = admin.run(*words, "--json")
    assert done.returncode == 0, done
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.full
async def test_workstations_are_listed_as_they_checked_in(admin: Admin) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    job = Job(command=Command(argv=("x",)), targets=(group("wl"), workstation("wl-up")))
    withdrawn = job.model_copy(update={"id": "wl-expired", "expires_at": long_ago})
    await admin.append([check_in("wl-up", "wl", "os-linux"), check_in("wl-paused", pause=PAUSE)])
    await admin.append([check_in("wl-up", agent="interactive-ada")])
    await admin.append([check_in("wl-up", agent="interactive-bob", up=False)])
    await admin.append([check_in("wl-off", up=False), check_in("wl-gone", at=long_ago)])
    await admin.append([check_in("wl-user", agent="interactive-ada")])
    await admin.append([job, withdrawn])
    names = ("wl-up", "wl-paused", "wl-off", "wl-gone", "wl-user")
    found = {row["workstation"]: row for row in rows(admin, "workstations", *names)}
    assert {name: found[name]["status"] for name in names} == dict(
        zip(names, ("up", "paused", "stopped", "missing", "missing"), strict=True)
    )
    up = found["wl-up"]
    assert (up["waiting"], up["running"], up["program"]) == (1, 0, "1.2.3")
    assert (up["groups"], up["arch"], up["release"]) == (["os-linux", "wl"], "x86_64", "debian-12")
    await admin.append([report(job, "wl-up", State.STARTED)])
    (row,) = rows(admin, "workstations", "--group", "wl")
    assert (row["workstation"], row["waiting"], row["running"]) == ("wl-up", 0, 1)
    paused = rows(admin, "workstations", *names, "--status", "paused")
    assert (
        [row["workstation"] for row in paused]
        == [row["workstation"] for row in rows(admin, "workstations", *names, "--status", "paused")]
        == ["wl-paused"]
    )
    head, line = admin.run("workstations", "wl-up").stdout.splitlines()
    columns = "WORKSTATION STATUS LAST SEEN AGENTS GROUPS PLATFORM PROGRAM WAITING RUNNING"
    assert " ".join(head.split()) == columns
    assert (
        "service, ada, bob (stopped)  wl      linux/x86_64/debian-12  1.2.3          0        1"
        in line
    )


async def test_machines_with_one_name_are_shown(admin: Admin) -> None:
    """Each with its identity; check-ins of the second do not change the first."""
    await admin.append([check_in("wm-1", "lab", machine=_machine("a", host="web.site1"))])
    assert "several machines" not in admin.run("workstations", "wm-1").stdout
    second = _machine("b", host="web.site2", address="10.0.0.2")
    await admin.append([check_in("wm-1", "library", machine=second, standby=True)])
    shown = admin.run("workstations", "wm-1").stdout
    assert "wm-1: several machines have this name; give each its own PCM_WORKSTATION:" in shown
    assert "web.site1 (10.0.0.1, machine aaaaaaaaaaaa): service receives jobs" in shown
    assert "web.site2 (10.0.0.2, machine bbbbbbbbbbbb): service receives nothing" in shown
    (row,) = rows(admin, "workstations", "wm-1")
    assert row["groups"] == ["lab"]
    machines = row["machines"]
    assert isinstance(machines, list)
    assert [(one["machine"][0], one["standby"]) for one in machines] == [("a", False), ("b", True)]
    await admin.append([check_in("wm-1", machine=second, standby=True, up=False)])
    assert "several machines" not in admin.run("workstations", "wm-1").stdout


def _machine(letter: str, **fields: str) -> Machine:
    given = {"id": letter * 32, "boot": letter * 32, "address": "10.0.0.1", **fields}
    return Machine.model_validate(given)


async def test_an_unknown_workstation_or_group_is_named(admin: Admin) -> None:
    await admin.append([check_in("wn-1", "wn")])
    for words, answer in (
        (("workstations", "wn-1", "wn-2"), "wn-2: no such workstation has checked in"),
        (("workstations", "--group", "unknown"), "--group: no workstation is in unknown"),
        (("groups", "unknown"), "unknown: no workstation is in this group"),
    ):
        done = admin.run(*words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pcm: {answer}\n")
    done = admin.run("workstations", "--status", "asleep")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--status" in done.stderr


async def test_a_terminal_shows_a_hundred_workstations_and_a_pipe_all(admin: Admin) -> None:
    await admin.append(check_in(f"wm-{number:03}", "wm") for number in range(130))
    assert len(admin.run("workstations", "--group", "wm").stdout.splitlines()) == 131
    shown = {}
    for words in ((), ("--all",)):
        terminal = admin.on_terminal("workstations", "--group", "wm", *words)
        assert terminal.end() == 0
        shown[words] = "\n".join(terminal.screen.shown)
    assert shown["--all",].count("wm-") == 130
    assert shown[()].count("wm-") == 100
    assert "... and 30 more; --all shows them" in shown[()]


async def test_groups_are_counted_and_the_automatic_ones_marked(admin: Admin) -> None:
    await admin.append([check_in("wg-1", "wg-lab", "os-linux"), check_in("wg-2", "wg-lab")])
    lines = admin.run("groups").stdout.splitlines()
    assert lines[0].split() == ["GROUP", "WORKSTATIONS", "AUTOMATIC"]
    assert ["wg-lab", "2", "-"] in [line.split() for line in lines]
    found = {row["group"]: row for row in rows(admin, "groups")}
    assert found["wg-lab"] == {"group": "wg-lab", "workstations": 2, "automatic": False}
    assert found["os-linux"]["automatic"] is True
    assert admin.run("groups", "wg-lab").stdout == "wg-1\nwg-2\n"
    assert json.loads(admin.run("groups", "WG-lab", "--json").stdout)["workstations"] == [
        "wg-1",
        "wg-2",
    ]


async def test_pause_and_resume_reach_all_agents_of_each_workstation(admin: Admin) -> None:
    for name in ("wp-1", "wp-2"):
        await admin.declare(name, "ada")
    done = admin.run("pause", "wp-1", "wp-2", "wp-1", "--reason", "an exam")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wp-1, wp-2: pause was sent; ")
    answer = admin.run("resume", "wp-1", "--json")
    assert json.loads(answer.stdout) == {"workstations": ["wp-1"], "paused": False}
    for queue in ("pcm.service.wp-1", "pcm.interactive.wp-1.ada"):
        pause, resume = await taken(admin, queue)
        assert (pause.workstation, pause.paused, pause.reason) == ("wp-1", True, "an exam")
        assert (resume.workstation, resume.paused, resume.reason) == ("wp-1", False, "")
    for queue in ("pcm.service.wp-2", "pcm.interactive.wp-2.ada"):
        assert [pause.workstation for pause in await taken(admin, queue)] == ["wp-2"]


async def test_where_one_is_not_known_none_is_paused(admin: Admin) -> None:
    await admin.declare("wq-1")
    done = admin.run("pause", "wq-1", "wq-nowhere", "wq-neither")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("pcm: no such workstation: wq-nowhere, wq-neither; nothing was sent\n")
    assert await taken(admin, "pcm.service.wq-1") == []


async def test_a_forgotten_workstation_is_gone_with_what_waited_there(admin: Admin) -> None:
    await admin.declare("wf-1", "ada")
    await admin.append([check_in("wf-1", "wf"), check_in("wf-1", agent="interactive-ada")])
    job_id = admin.run("send", "--to", "group:wf", "--to", "workstation:wf-1", "--", "x")
    assert job_id.returncode == 1, "no queue is bound to the group"
    sent = admin.run("send", "--to", "workstation:wf-1", "--", "x").stdout.strip()
    done = admin.run("forget", "wf-1", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "wf-1: forgotten\n", "")
    assert await queues(admin, "pcm.service.wf-1", "pcm.interactive.wf-1.ada") == []
    gone = admin.run("workstations", "wf-1")
    assert gone.stderr == "pcm: wf-1: no such workstation has checked in\n"
    watched = admin.run("watch", sent, "--give-up-after", "1s")
    assert watched.returncode == 1
    assert state_of(admin, sent, "wf-1") == "unreachable"
    again = admin.run("forget", "wf-1", "--yes")
    assert (again.returncode, again.stderr) == (
        1,
        "pcm: no such workstation: wf-1; nothing was done\n",
    )


def state_of(admin: Admin, job_id: str, name: str) -> str:
    from broker.history.engine import open_history
    from broker.history.queries.jobs import query_jobs

    engine = open_history(admin.environment["PCM_HISTORY_URL"])
    try:
        with query_jobs(engine) as history:
            outcome = history.outcome(job_id, name)
            assert outcome is not None
            return outcome.state
    finally:
        engine.dispose()


async def test_what_has_only_a_queue_or_only_checked_in_is_forgotten_too(admin: Admin) -> None:
    await admin.declare("wo-queue")
    await admin.append([check_in("wo-row")])
    done = admin.run("forget", "wo-queue", "wo-row", "--yes", "--json")
    assert json.loads(done.stdout) == {"workstations": ["wo-queue", "wo-row"], "forgotten": True}
    assert await queues(admin, "pcm.service.wo-queue") == []
    assert admin.run("workstations", "wo-row").returncode == 1


async def test_where_one_agent_is_up_or_one_name_unknown_none_is_forgotten(admin: Admin) -> None:
    for name in ("wu-1", "wu-2"):
        await admin.declare(name, "ada")
        await admin.append([check_in(name), check_in(name, agent="interactive-ada")])
    unknown = admin.run("forget", "wu-1", "wu-nowhere", "--yes")
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "pcm: no such workstation: wu-nowhere; nothing was done\n",
    )
    for kind, user in ((AgentKind.SERVICE, ""), (AgentKind.INTERACTIVE, "ada")):
        connection = await aio_pika.connect(admin.url)
        async with connection, connection.channel() as channel:
            queue = await channel.get_queue(topology.queue_name(kind, "wu-2", user))
            await queue.consume(asyncio.Queue[object]().put)
            up = admin.run("forget", "wu-1", "wu-2", "--yes")
        assert (up.returncode, len(up.stderr.splitlines())) == (1, 1)
        assert up.stderr.startswith("pcm: wu-2: an agent is up")
        assert "stop it first" in up.stderr
    assert len(await queues(admin, "pcm.service.wu-1", "pcm.interactive.wu-1.ada")) == 2
    assert len(rows(admin, "workstations", "wu-1", "wu-2")) == 2


async def test_forgetting_asks_back(admin: Admin) -> None:
    await admin.declare("wy-1")
    without = admin.run("forget", "wy-1")
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1)
    assert "--yes" in without.stderr
    for answer, status in (("\n", 1), ("y\n", 0)):
        assert await queues(admin, "pcm.service.wy-1")
        terminal = admin.on_terminal("forget", "wy-1")
        terminal.until(lambda text: "[y/N]" in text)
        terminal.type(answer)
        assert terminal.end() == status
    assert await queues(admin, "pcm.service.wy-1") == []


def wait_for_status(admin: Admin, name: str, status: str) -> None:
    """Wait until a workstation has checked in so."""
    deadline = time.monotonic() + LIMIT
    while rows(admin, "workstations", name)[0]["status"] != status:
        assert time.monotonic() < deadline


async def test_real_agents_are_listed_paused_resumed_and_forgotten(
    ws: Workstation, admin: Admin
) -> None:
    service = ws.start("service", groups="wr")
    interactive = ws.start("interactive", groups="wr")
    for command, event in (("pause", "agent.paused"), ("resume", "agent.resumed")):
        assert admin.run(command, ws.name).returncode == 0
        for agent in (service, interactive):
            agent.wait_for(event)
        wait_for_status(admin, ws.name, "paused" if command == "pause" else "up")
    assert admin.run("resume", ws.name).returncode == 0, "it is not paused, which is harmless"
    (row,) = rows(admin, "workstations", "--group", "wr")
    assert row["os"] == "linux"
    assert admin.run("forget", ws.name, "--yes").returncode == 1
    assert [agent.end() for agent in (interactive, service)] == [0, 0]
    wait_for_status(admin, ws.name, "stopped")
    assert admin.run("forget", ws.name, "--yes").returncode == 0
    assert await queues(admin, f"pcm.service.{ws.name}", f"pcm.interactive.{ws.name}.ada") == []
    assert admin.run("workstations", ws.name).returncode == 1
