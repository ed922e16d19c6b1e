"""Enrolled agents: real processes with the credentials that were handed out, and nothing more."""

import itertools
import json
import os
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiormq
import pytest
from aiormq.exceptions import ChannelAccessRefused

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import Unroutable
from broker.amqp.topology import JOBS, AgentKind, login, queue_name
from broker.enrolment.definitions import hashed
from schemas import Job, State, Target, group
from schemas.names import user_of_word, user_word
from tests.support.rabbitmq import Node, own_nodes
from tests.support.site import Settings, Site
from tests.support.users import ODD_USERS
from tests.support.waiting import LIMIT
from tests.support.workstation import PCM_AGENT, AgentProcess, Workstation, agents_of, final, follow

_numbers = itertools.count(1)


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workstation]:
    """A workstation that no other test uses; its agents get no login but their own."""
    workstation = Workstation(f"ws-{os.getpid()}-{next(_numbers)}", "", tmp_path)
    for name in ("PCM_AMQP_URL", "PCM_WORKSTATION", "PCM_USER"):
        del workstation.environment[name]
    try:
        yield workstation
    finally:
        workstation.stop()


@pytest.fixture
async def dispatcher(site: Site) -> AsyncIterator[Dispatcher]:
    async with Dispatcher.connect(reaching(site.url)) as connected:
        yield connected


def reaching(url: str) -> DispatcherSettings:
    return DispatcherSettings(amqp_url=(url,), settle=timedelta(seconds=0.5))


def start(
    ws: Workstation, kind: str, settings: Settings, *, connected: bool = True, **more: str
) -> AgentProcess:
    """Start an agent with settings as they were handed out."""
    return ws.start(kind, connected=connected, **told(settings), **more)


def told(settings: Settings) -> dict[str, str]:
    """Return settings as a workstation takes them."""
    return {name.removeprefix("PCM_").lower(): value for name, value in settings.items()}


def eventually(check: Any) -> Any:
    """Wait until something is so; return what it gives."""
    deadline = time.monotonic() + LIMIT
    while not (found := check()):
        assert time.monotonic() < deadline, check
        time.sleep(0.05)
    return found


def queue_of(ws: Workstation, user: str = "") -> str:
    return queue_name(AgentKind.INTERACTIVE if user else AgentKind.SERVICE, ws.name, user)


def append(ws: Workstation, word: str, **fields: Any) -> Job:
    """Return a background job that leaves a word."""
    fields = {"background": True, **fields}
    return ws.job(f"echo {word} >> {ws.folder / 'ran'}", shell=True, **fields)


def ran(ws: Workstation) -> list[str]:
    return (ws.folder / "ran").read_text().split()


async def test_a_group_that_the_agent_is_not_in_is_told(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """It may not unbind its queue, but runs nothing that is not for it."""
    agents = site.enrol(ws.name, "--group", f"lab-{ws.name}")
    service = start(ws, "service", {**agents["service"], "PCM_GROUPS": ""})
    job = append(ws, "ran").model_copy(update={"targets": (group(f"lab-{ws.name}"),)})
    reports = await follow(dispatcher, await dispatcher.dispatch(job))
    assert final(reports).state is State.NOT_APPLICABLE
    assert not (ws.folder / "ran").exists()
    assert not service.events("bindings.removed")

    def is_found() -> bool:
        return f"not in: lab-{ws.name}; the agent does not run" in site.pcm("doctor").stdout

    assert eventually(is_found)


@pytest.mark.full
async def test_a_second_machine_with_the_same_login_receives_nothing(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """The broker drops a silent connection after three heartbeats: until then nothing is told."""
    settings = {**site.enrol(ws.name)["service"]}
    settings["PCM_AMQP_URL"] += "?heartbeat=1"
    first = start(ws, "service", settings)
    second = start(
        ws, "service", settings, connected=False, state_dir=str(ws.folder / "another machine")
    )
    second.wait_for("queue.taken")
    for agent in (first, second):
        job = await dispatcher.dispatch(append(ws, "ran"))
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        assert len(agent.events("job.received")) == 1
        if agent is first:
            assert not second.events("job.received")
            assert first.end() == 0
            second.wait_for("broker.connected")


@pytest.mark.full
async def test_jobs_of_all_four_kinds(site: Site, ws: Workstation, dispatcher: Dispatcher) -> None:
    """The rule holds as ever, and nothing is logged that went wrong."""
    agents = site.enrol(ws.name, "--user", "ada", "--group", "lab")
    service = start(ws, "service", agents["service"])
    user = start(ws, "interactive", agents["interactive-ada"], accept_offers="true")
    soon = datetime.now(UTC) + timedelta(seconds=1)
    for background in (True, False):
        for mandatory_at in (None, soon):
            job = ws.job("echo", "hi", background=background, mandatory_at=mandatory_at)
            job = job.model_copy(update={"targets": (group("lab"), ws.target)})
            reports = await follow(dispatcher, await dispatcher.dispatch(job))
            assert final(reports).state is State.SUCCEEDED
            who = "service" if background else "interactive-ada"
            assert agents_of(reports, State.STARTED) == {who}
            assert (job.id in user.log.read_text()) is not background
    service.wait_for("job.ended", count=2)
    for agent in (service, user):
        assert not [event for event in agent.events() if event["level"] != "info"]
        assert agent.end() == 0
    (row,) = site.asked("workstations", ws.name)
    assert (row["status"], row["groups"]) == ("stopped", ["lab"])


async def test_a_file_of_credentials_is_read_as_it_is(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """It is the agent's .env: whole, and its owner's alone."""
    folder = ws.folder / "credentials"
    asked = site.asked("enrol", ws.name, "--user", "ada", "--credentials", f"{folder}/")
    files = [Path(agent["file"]) for agent in asked["agents"]]
    assert [file.name for file in files] == [f"{agent['login']}.env" for agent in asked["agents"]]
    assert {agent["settings"] for agent in asked["agents"]} == {None}  # once, and in one place
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for kind, file in zip(("service", "interactive"), files, strict=True):
        here = ws.folder / kind
        here.mkdir()
        (here / ".env").write_bytes(file.read_bytes())
        ws.start(kind, program=("env", "-C", here, *PCM_AGENT), accept_offers="true")
    for background in (True, False):
        job = await dispatcher.dispatch(ws.job("true", background=background))
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED


@pytest.mark.full
async def test_login_names_of_any_letters(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Each user's agent has its own queue and login; its name is shown as it is."""
    options = [word for user in ODD_USERS for word in ("--user", user)]
    agents = site.enrol(ws.name, *options)
    assert len(agents) == len(ODD_USERS) + 1
    start(ws, "service", agents.pop("service"))
    for user in ODD_USERS:
        settings = agents[f"interactive-{user_of_word(user_word(user))}"]
        job = await dispatcher.dispatch(ws.job("true"))
        agent = start(ws, "interactive", {"PCM_USER": user, **settings}, accept_offers="true")
        reports = await follow(dispatcher, job)
        assert agents_of(reports, State.SUCCEEDED) == {f"interactive-{user}"}
        assert agent.end() == 0
        assert not [event for event in agent.events() if event["level"] != "info"]
    (row,) = site.asked("workstations", ws.name)
    shown = {agent["agent"] for agent in row["agents"]}
    assert shown == {"service", *(f"interactive-{user}" for user in ODD_USERS)}
    done = site.pcm("rotate", ws.name, "--user", ODD_USERS[-1], "--json")
    assert done.returncode == 0, done.stderr
    done = site.pcm("revoke", ws.name, "--yes")
    assert done.returncode == 0, done.stderr
    (row,) = site.asked("workstations", ws.name)
    assert {agent["status"] for agent in row["agents"]} == {"revoked"}


async def test_again_keeps_the_password_and_changes_the_groups(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Who is not named is kept, in the groups that are named now."""
    lab, office = f"lab-{ws.name}", f"office-{ws.name}"
    file = ws.folder / "service.env"
    site.asked("enrol", ws.name, "--group", lab, "--credentials", str(file))
    before = file.read_text()
    settings = dict(line.split("=", 1) for line in before.splitlines())
    service = start(ws, "service", settings)
    first = await dispatcher.dispatch(to(append(ws, "lab"), group(lab)))
    assert final(await follow(dispatcher, first)).state is State.SUCCEEDED
    again = site.asked("enrol", ws.name, "--group", lab, "--credentials", str(file))
    assert file.read_text() == before
    assert [agent["password"] for agent in again["agents"]] == ["kept"]
    added = site.enrol(ws.name, "--user", "ada", "--group", office)
    assert list(added) == ["interactive-ada"]
    site.enrol(ws.name, "--group", office, "--credentials", f"{ws.folder}/")
    user = start(ws, "interactive", added["interactive-ada"], accept_offers="true")
    assert service.end() == 0
    service = start(ws, "service", {**settings, "PCM_GROUPS": office})
    with pytest.raises(Unroutable):
        await dispatcher.dispatch(to(append(ws, "nobody"), group(lab)))
    for background in (True, False):
        job = to(append(ws, "office", background=background), group(office))
        reports = await follow(dispatcher, await dispatcher.dispatch(job))
        assert final(reports).state is State.SUCCEEDED
    assert ran(ws) == ["lab", "office", "office"]
    for agent in (service, user):
        assert not agent.events("broker.lost")


def to(job: Job, *targets: Target) -> Job:
    return job.model_copy(update={"targets": targets})


async def test_a_queue_keeps_its_jobs_whoever_made_it(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """An agent of the simple set-up is enrolled while a job waits, and then once more."""
    simple = {"PCM_AMQP_URL": site.url, "PCM_WORKSTATION": ws.name, "PCM_GROUPS": "old"}
    start(ws, "service", simple).end()
    first = await dispatcher.dispatch(append(ws, "first"))
    agents = site.enrol(ws.name)
    second = await dispatcher.dispatch(append(ws, "second"))
    assert site.enrol(ws.name) == {}
    with pytest.raises(Unroutable):
        await dispatcher.dispatch(to(append(ws, "nobody"), group("old")))
    start(ws, "service", agents["service"])
    for job in (first, second):
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert sorted(ran(ws)) == ["first", "second"]


async def test_revoking_closes_connections_and_deletes_users_and_queues(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Of one user, or of the workstation; the agent says what is to be done, and comes back."""
    agents = site.enrol(ws.name, "--user", "ada")
    service = start(ws, "service", agents["service"], login_pause="1s")
    user = start(ws, "interactive", agents["interactive-ada"], login_pause="1s")
    asked = site.asked("revoke", ws.name, "--user", "ada", "--yes")
    assert asked["revoked"] == [login(AgentKind.INTERACTIVE, ws.name, "ada")]
    eventually(
        lambda: [e for e in user.events("broker.lost") if "refused the login" in e["reason"]]
    )
    assert f"pcm enrol {ws.name} --user ada" in user.events("broker.lost")[-1]["reason"]
    assert not service.events("broker.lost")
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert site.asked("revoke", ws.name, "--yes")["revoked"] == [f"service@{ws.name}"]
    (row,) = site.asked("workstations", ws.name)
    assert row["status"] == "revoked"
    eventually(
        lambda: [e for e in service.events("broker.lost") if "refused the login" in e["reason"]]
    )
    names = {queue["name"] for queue in site.management.get("queues", site.virtual_host)}
    assert not names & {queue_of(ws), queue_of(ws, "ada")}
    listed = site.broker.ctl("list_connections", "user")
    assert f"@{ws.name}\n" not in listed
    assert f"@{ws.name}\t" not in site.broker.ctl("list_users")
    with pytest.raises(Unroutable):
        await dispatcher.dispatch(ws.job("true", background=True))
    again = site.pcm("revoke", ws.name, "--yes")
    assert (again.returncode, again.stderr) == (
        1,
        f"pcm: not enrolled: {ws.name}; nothing was done\n",
    )
    service.end()
    start(ws, "service", site.enrol(ws.name)["service"])
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED


async def test_rotating_loses_no_job(site: Site, ws: Workstation, dispatcher: Dispatcher) -> None:
    """What runs, runs on without the broker; what waits, waits; each is run once."""
    old = site.enrol(ws.name, "--group", "lab")["service"]
    service = start(ws, "service", old, concurrency="1", login_pause="1s", drain="60s")
    until = ws.folder / "until"
    running = f"echo running >> {ws.folder / 'ran'}; while ! test -e {until}; do sleep 0.1; done"
    jobs = [await dispatcher.dispatch(ws.job(running, shell=True, background=True))]
    service.wait_for("job.started")
    jobs += [await dispatcher.dispatch(append(ws, word)) for word in ("one", "two")]
    service.wait_for("job.received", count=3)
    new = site.asked("rotate", ws.name)["agents"][0]["settings"]
    assert {**new, "PCM_AMQP_URL": ""} == {**old, "PCM_AMQP_URL": ""}
    assert new["PCM_AMQP_URL"] != old["PCM_AMQP_URL"]
    eventually(
        lambda: [e for e in service.events("broker.lost") if "refused the login" in e["reason"]]
    )
    jobs += [await dispatcher.dispatch(append(ws, "three"))]
    until.touch()
    assert service.end() == 0
    service = start(ws, "service", new, concurrency="1")
    for job in jobs:
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert sorted(ran(ws)) == ["one", "running", "three", "two"]


async def test_a_queue_that_is_missing_is_reported_and_not_made(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Nor is it bound again where an administrator took its bindings."""
    settings = site.enrol(ws.name)["service"]
    service = start(ws, "service", settings, watch_interval="1s")
    place = ("bindings", site.virtual_host, "e", JOBS, "q", queue_of(ws))
    for binding in site.management.get(*place):
        site.management.delete(*place, binding["properties_key"])
    site.management.delete("queues", site.virtual_host, queue_of(ws))
    hint = f"is it enrolled? pcm enrol {ws.name}"
    (event,) = eventually(
        lambda: [e for e in service.events("broker.lost") if "no queue" in e["reason"]]
    )
    assert event["reason"].endswith(hint)
    assert site.management.get("queues", site.virtual_host, queue_of(ws)) is None
    site.enrol(ws.name)
    service.wait_for("broker.connected", count=2)
    job = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    assert len([e for e in service.events("broker.lost") if "no queue" in e["reason"]]) == 1


async def test_a_damaged_ledger_runs_nothing_again(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """The stream is closed to it: what may have run is refused, with the reason."""
    settings = site.enrol(ws.name)["service"]
    service = start(ws, "service", settings)
    done = await dispatcher.dispatch(append(ws, "done"))
    assert final(await follow(dispatcher, done)).state is State.SUCCEEDED
    later = datetime.now(UTC) + timedelta(hours=1)
    waiting, spoiled = [
        await dispatcher.dispatch(append(ws, word, mandatory_at=later))
        for word in ("waiting", "spoiled")
    ]
    users = await dispatcher.dispatch(append(ws, "users", background=False, mandatory_at=later))
    service.wait_for("job.received", count=4)
    service.end()
    unheard = await dispatcher.dispatch(append(ws, "unheard"))
    with closing(sqlite3.connect(ws.state_dir / "service" / "ledger.db")) as ledger, ledger:
        ledger.execute("DELETE FROM jobs WHERE id = ?", (done.id,))  # lost, with its page
        ledger.execute("UPDATE jobs SET body = x'ff' WHERE id = ?", (spoiled.id,))
    service = start(ws, "service", settings)
    assert service.events("ledger.damaged")
    await dispatcher.dispatch(done)
    await dispatcher.dispatch(spoiled)
    for job in (waiting, unheard, spoiled):
        refused = final(await follow(dispatcher, job))
        assert refused.state is State.REFUSED
        assert "whether it ran here is not known; send it as a new job" in refused.reason
    new = await dispatcher.dispatch(append(ws, "new"))
    assert final(await follow(dispatcher, new)).state is State.SUCCEEDED
    assert ran(ws) == ["done", "new"]
    pending = json.loads(ws.run("pcm-agent", "pending", "--json", **told(settings)).stdout)
    assert {row["job"] for row in pending} == {users.id}
    service.end()
    start(ws, "service", settings)  # and so it stays
    await dispatcher.dispatch(done)
    last = await dispatcher.dispatch(append(ws, "last"))
    assert final(await follow(dispatcher, last)).state is State.SUCCEEDED
    assert ran(ws) == ["done", "new", "last"]


async def test_a_lost_ledger_runs_nothing_again(
    site: Site, ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q229809: what is older than the ledger may have run under a former one."""
    settings = site.enrol(ws.name)["service"]
    service = start(ws, "service", settings)
    done = await dispatcher.dispatch(append(ws, "done"))
    assert final(await follow(dispatcher, done)).state is State.SUCCEEDED
    service.end()
    for file in (ws.state_dir / "service").glob("ledger.db*"):
        file.unlink()
    unheard = await dispatcher.dispatch(append(ws, "unheard"))
    await dispatcher.dispatch(done)
    start(ws, "service", settings)
    refused = final(await follow(dispatcher, unheard))
    assert refused.state is State.REFUSED
    assert refused.reason.startswith("was created before this agent's ledger")
    new = await dispatcher.dispatch(append(ws, "new"))
    assert final(await follow(dispatcher, new)).state is State.SUCCEEDED
    assert ran(ws) == ["done", "new"]


@pytest.mark.full
async def test_definitions_set_up_a_fresh_broker(site: Site, ws: Workstation) -> None:
    """A file for several workstations, which its administrators import; agents work on it."""
    other = f"{ws.name}-other"
    file = ws.folder / "definitions.json"
    with own_nodes(), Node() as node:
        url = f"{node.url}plant"
        words = ("--definitions", str(file), "--json")
        first = site.pcm("enrol", ws.name, "--user", "ada", "--group", "lab", *words, url=url)
        second = site.pcm("enrol", other, *words, url=url)
        again = json.loads(site.pcm("enrol", ws.name, "--group", "office", *words, url=url).stdout)
        assert [agent["password"] for agent in again["agents"]] == ["kept", "kept"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        agents = {
            agent["login"]: agent["settings"]
            for done in (first, second)
            for agent in json.loads(done.stdout)["agents"]
        }
        for settings in agents.values():
            password = settings["PCM_AMQP_URL"].partition("@")[0].rpartition(":")[2]
            assert len(password) > 40
            assert password not in file.read_text()
        assert site.management.get("users", f"service@{ws.name}") is None
        node.ctl("import_definitions", str(file))
        node.ctl("set_permissions", "-p", "plant", "guest", ".*", ".*", ".*")
        for settings in agents.values():
            settings["PCM_GROUPS"] = "office"
        start(ws, "service", agents[f"service@{ws.name}"])
        start(ws, "interactive", agents[f"interactive-ada@{ws.name}"], accept_offers="true")
        async with Dispatcher.connect(reaching(url)) as dispatcher:
            for background in (True, False):
                job = to(ws.job("true", background=background), group("office"))
                reports = await follow(dispatcher, await dispatcher.dispatch(job))
                assert final(reports).state is State.SUCCEEDED
            with pytest.raises(Unroutable):
                await dispatcher.dispatch(to(ws.job("true"), group("lab")))
        ws.stop()


async def test_a_login_of_administrators_scripts(site: Site, ws: Workstation) -> None:
    """The rights that docs/security.md names are enough, for all but declaring."""
    name = f"scripts-{ws.name}"
    site.management.put("users", name, body={"tags": "", **hashed("secret")})
    allowed = {
        "configure": r"^pcm\.dead\.lock$",
        "write": r"^pcm\.(jobs|reports)$",
        "read": r"^pcm\.(reports|dead)$",
    }
    site.management.put("permissions", site.virtual_host, name, body=allowed)
    url = site.url.replace("guest:guest", f"{name}:secret")
    try:
        start(ws, "service", site.enrol(ws.name)["service"])
        async with Dispatcher.connect(reaching(url)) as dispatcher:
            job = await dispatcher.dispatch(ws.job("true", background=True))
            assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
            later = datetime.now(UTC) + timedelta(hours=1)
            job = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=later))
            await dispatcher.cancel(job.id)
            assert final(await follow(dispatcher, job)).state is State.CANCELLED
        for words in (
            ("dead", "list"),
            ("jobs",),
            ("pause", ws.name),
            ("send", "--to", str(ws.target), "--dry-run", "--", "true"),
        ):
            done = site.pcm(*words, url=url)
            assert done.returncode == 0, done.stderr
        connection = await aiormq.connect(url)
        channel = await connection.channel()
        with pytest.raises(ChannelAccessRefused):
            await channel.basic_get(queue_of(ws))
        await connection.close()
    finally:
        site.management.delete("users", name)


def test_what_was_cut_off_is_taken_up(site: Site, ws: Workstation) -> None:
    """A user without rights was made, and its password never shown: it gets another."""
    name = login(AgentKind.SERVICE, ws.name)
    site.management.put("users", name, body={"tags": "", **hashed("unknown")})
    assert list(site.enrol(ws.name)) == ["service"]


def test_what_goes_wrong_is_one_line_and_nothing_is_done(site: Site, ws: Workstation) -> None:
    file = ws.folder / "definitions.json"
    nowhere = str(ws.folder / "nowhere" / "file")
    file.write_text('{"users": 3}')
    asked: dict[tuple[str, ...], tuple[int, str]] = {
        ("--credentials", nowhere): (1, f"--credentials: {nowhere}: No such file or directory"),
        ("--credentials", str(file), "--user", "ada"): (
            2,
            f"--credentials: {file} is not a folder, and there are several agents",
        ),
        ("--definitions", str(file)): (
            2,
            f"--definitions: {file} holds something other than definitions",
        ),
        ("--broker", "http://x"): (
            2,
            "--broker: must be like amqp://USER:PASSWORD@HOST:5672/",
        ),
    }
    for words, (status, text) in asked.items():
        done = site.pcm("enrol", ws.name, *words)
        assert (done.returncode, done.stderr, done.stdout) == (status, f"pcm: {text}\n", "")
    assert site.management.get("users", f"service@{ws.name}") is None
    assert not list(ws.folder.glob(".*new"))
    for words in (("rotate", ws.name), ("rotate", ws.name, "--user", "ada")):
        done = site.pcm(*words)
        assert done.returncode == 1
        assert done.stderr.startswith("pcm: not enrolled: ")
    assert site.pcm("revoke", ws.name).returncode == 2  # there is nobody to ask back


def test_several_workstations_at_once(site: Site, ws: Workstation) -> None:
    """Each is delivered before the next is changed; what is wrong of one is found before."""
    names = [f"{ws.name}-{number}" for number in range(3)]
    (ws.folder / "lab.txt").write_text("\n".join(names[1:]))
    several = (names[0], f"@{ws.folder}/lab.txt")
    folder = ws.folder / "new"
    done = site.pcm("enrol", *several, "--group", "lab", "--credentials", f"{folder}/", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(map(json.loads, done.stdout.splitlines()))
    assert [row["workstation"] for row in rows] == names
    assert sorted(file.name for file in folder.iterdir()) == [f"service@{n}.env" for n in names]
    for number, name in enumerate(names):
        text = (folder / f"service@{name}.env").read_text()
        assert f"PCM_WORKSTATION={name}\n" in text
        assert rows[number]["agents"][0]["file"] == str(folder / f"service@{name}.env")
    one_file = site.pcm("enrol", *several, "--credentials", f"{ws.folder}/one.env")
    assert (one_file.returncode, one_file.stdout) == (2, "")
    assert one_file.stderr.endswith("one.env is not a folder, and there are several agents\n")
    halted = site.pcm("rotate", names[0], f"{ws.name}-x", names[1], "--json")
    assert halted.returncode == 1
    assert [json.loads(line)["workstation"] for line in halted.stdout.splitlines()] == names[:1]
    first, second = halted.stderr.splitlines()
    assert first == f"pcm: 1 of 3 workstations are done; {ws.name}-x is the next"
    assert second.startswith(f"pcm: not enrolled: {ws.name}-x; nothing was done")
    refused = site.pcm("revoke", names[0], f"{ws.name}-x", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    revoked = site.pcm("revoke", ",".join(names), "--yes")
    assert revoked.stdout == "".join(f"service@{name}: revoked\n" for name in names)


@pytest.mark.parametrize(
    ("url", "status", "text"),
    [
        ("http://127.0.0.1:1", 3, "the broker is unreachable: GET /api/users at 127.0.0.1:1 as"),
        ("http://guest:wrong@{}", 1, "the broker refused the login"),
        ("http://{plain}:secret@{}", 1, "Not management user"),
        ("https://guest:guest@{}", 3, "the broker is unreachable"),
        ("ftp://x", 2, "PCM_MANAGEMENT_URL: must be like https://USER:PASSWORD@HOST:15671"),
    ],
)
def test_the_management_api_says_no(
    site: Site, ws: Workstation, url: str, status: int, text: str
) -> None:
    """In one line, without a password."""
    plain = f"plain-{ws.name}"
    site.management.put("users", plain, body={"tags": "", **hashed("secret")})
    try:
        place = site.broker.management_url.rpartition("@")[2]
        asked = url.format(place, plain=plain)
        ws.environment |= {"PCM_AMQP_URL": site.url, "PCM_MANAGEMENT_URL": asked}
        done = ws.run("pcm", "enrol", ws.name)
        assert (done.returncode, done.stdout) == (status, "")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
        assert ":wrong" not in done.stderr
        assert "secret" not in done.stderr
    finally:
        site.management.delete("users", plain)
